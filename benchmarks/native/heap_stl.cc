// Words counted in a map, moved to vectors and sorted, again and again: what C++ programs allocate.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

int main(int argc, char **argv)
{
    unsigned long rounds = argc > 1 ? strtoul(argv[1], nullptr, 10) : 10, total = 0;
    for (unsigned long round = 0; round < rounds; round++) {
        std::unordered_map<std::string, std::vector<int>> places;
        unsigned x = 12345 + round;
        for (int i = 0; i < 200000; i++) {
            x = x * 1664525 + 1013904223;
            places["a word of the text, number " + std::to_string(x >> 16)].push_back(i);
        }
        std::map<std::string, int> sorted;
        for (auto &[word, where] : places)
            sorted[word] = where.size();
        std::vector<std::string> words;
        for (auto &[word, count] : sorted)
            if (count > 2)
                words.push_back(word);
        std::sort(words.begin(), words.end());
        total += words.size();
    }
    printf("%lu\n", total);
}
