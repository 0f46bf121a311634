// oracle_cpp [THROWS [DEPTH [quick]]]: quick leaves out what exit() does, DEPTH -1 throws where there is nothing to clean up on the way.
//
// Exceptions thrown through many frames, iostreams, maps of strings, std::function, virtual calls.
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Shape {
    virtual ~Shape() = default;
    virtual double area() const = 0;
};
struct Square : Shape {
    double side;
    explicit Square(double s) : side(s) {}
    double area() const override { return side * side; }
};

struct Guard {
    int &count;
    explicit Guard(int &c) : count(c) { ++count; }
    ~Guard() { --count; }
};

__attribute__((noinline)) static int thrower(int depth, int &live) {
    Guard guard(live);
    if (depth == 0)
        throw std::runtime_error("at the bottom");
    return thrower(depth - 1, live) + 1;
}

__attribute__((noinline)) static void throw_plainly() { throw std::runtime_error("at the bottom"); }

int main(int argc, char **argv) {
    int throws = argc > 1 ? std::atoi(argv[1]) : 3, depth = argc > 2 ? std::atoi(argv[2]) : 6;
    int live = 0, caught = 0;
    for (int round = 0; round < throws; round++) {
        try {
            if (depth < 0)
                throw_plainly();
            thrower(depth + round, live);
        } catch (const std::exception &error) {
            caught += std::string(error.what()).size() > 3;
        }
    }
    std::map<std::string, int> counts;
    std::istringstream words("the quick brown fox jumps over the lazy dog the end 42 3.25");
    for (std::string word; words >> word;)
        counts[word]++;
    std::ostringstream out;
    out.precision(12);
    for (const auto &[word, count] : counts)
        out << word << '=' << count << ' ' << count / 7.0 << '\n';
    std::function<int(int)> fold = [&](int n) { return n ? fold(n - 1) + 1 : 0; };
    std::vector<std::unique_ptr<Shape>> shapes;
    for (int i = 0; i < 5; i++)
        shapes.push_back(std::make_unique<Square>(i));
    double area = 0;
    for (const auto &shape : shapes)
        area += shape->area();
    std::cout << "done " << caught << ' ' << live << ' ' << counts.size() << ' ' << fold(10) << ' ' << area << ' '
              << out.str().size() << std::endl;
    if (argc > 3)
        std::_Exit(0);
}
