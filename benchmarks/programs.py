"""The programs that stacks are judged on: as they are distributed, nothing rebuilt, each at work.

Each is a context manager that yields the process id to attach to, given a folder of its own.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import running

START_DEADLINE_S = 30.0


class NotHere(Exception):
    """The program is not installed, or can't be used for this."""


Running = contextlib.AbstractContextManager[int]


def need(*programs: str) -> str:
    """The path of the first of these that there is."""
    for program in programs:
        if path := shutil.which(program):
            return path
    raise NotHere(f"{programs[0]} is not installed")


@contextlib.contextmanager
def process(*argv: object, **options: object) -> Iterator[int]:
    """The program at work; killed at the end."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen([str(word) for word in argv], **{**quiet, **options})  # type: ignore[call-overload]
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


def wait_for(what: str, condition: Callable[[], object]) -> None:
    end = time.monotonic() + START_DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise NotHere(f"{what} did not happen within {START_DEADLINE_S:g} s")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[int]:
    server, load = need("redis-server"), need("redis-benchmark")
    port = free_port()
    words = ("--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder)
    with process(server, *words) as pid:
        wait_for("redis-server's start", lambda: answers(port))
        tests = "set,get,incr,lpush,lrange_100,sadd,hset,zadd,mset"
        with process(load, "-p", port, "-l", "-q", "-n", "20000", "-r", "10000", "-t", tests):
            yield pid


def postgres_bin(name: str) -> str:
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(versions[-1]) if versions else need(name)


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[int]:
    """A backend that serves pgbench."""
    server, initdb, pgbench = (postgres_bin(name) for name in ("postgres", "initdb", "pgbench"))
    who: dict[str, object] = {}
    if os.geteuid() == 0:  # which the server refuses to run as
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chown(folder, user.pw_uid, user.pw_gid)
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **who}
    subprocess.run([initdb, "-D", data, "-A", "trust", "-U", "bench", "-N"], check=True, **quiet)  # type: ignore[call-overload]
    settings = ("-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off")
    with process(server, "-D", data, *settings, **quiet) as postmaster:
        access = ("-h", folder, "-U", "bench")
        init = [pgbench, *access, "-i", "-s", "2", "-q", "postgres"]
        wait_for("pgbench -i", lambda: subprocess.run(init, **quiet, check=False).returncode == 0)  # type: ignore[call-overload]
        with process(pgbench, *access, "-T", "600", "-c", "1", "postgres", **quiet):
            backends: list[int] = []

            def find() -> bool:
                backends[:] = [p for p in children_of(postmaster) if "[local]" in command_of(p)]
                return bool(backends)

            wait_for("a backend", find)
            yield backends[0]
        os.kill(postmaster, signal.SIGINT)
        with contextlib.suppress(NotHere):
            wait_for("the end of its children", lambda: not children_of(postmaster))


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def sqlite(folder: Path) -> Running:
    query = """CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c REAL); CREATE INDEX i ON t(b);
        WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 100000)
        INSERT INTO t SELECT x, hex(x * 7919 % 100003), sqrt(x) FROM n;
        WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1000000)
        SELECT n.x, count(*), group_concat(substr(t.b, 1, 3)), sum(t.c), max(upper(t.b))
        FROM n, t WHERE t.a > 0 GROUP BY n.x, t.b ORDER BY 3;"""
    return process(need("sqlite3"), folder / "bench.db", query)


def xz(folder: Path) -> Running:
    data, picks = folder / "data", random.Random(1)
    words = [f"{picks.getrandbits(40):x}" for _ in range(4000)]
    data.write_text("\n".join(" ".join(picks.choices(words, k=12)) for _ in range(600_000)))
    return process(need("xz"), "-9", "-T1", "--stdout", data)


def c_function(number: int) -> str:
    return f"""
struct s{number} {{ int a, b; double d; struct s{number} *next; }};
int f{number}(struct s{number} *s, const char *text, unsigned n) {{
    int total = {number};
    for (unsigned i = 0; i < n; i++) {{
        switch (text[i] & 15) {{
        case 0: total += s->a * {number % 97}; break;
        case 1: total ^= s->b << ({number} & 7); break;
        case 2: s->d = s->d * {number}.5 + total; break;
        case 3: if (s->next) s = s->next; else return total; break;
        case 4: total = total % (s->a | 1); break;
        default: for (int k = 0; k < s->b; k++) total += text[k % n] * k;
        }}
    }}
    return total{f" + f{number - 1}((void *)s, text, n / 2)" if number % 20 else ""};
}}
"""


def cc1(folder: Path) -> Running:
    need("gcc")
    asked = subprocess.run(["gcc", "-print-prog-name=cc1"], capture_output=True, text=True, check=True)
    source, count = folder / "big.c", 20_000
    last = f"int use(struct s{count - 1} *s, const char *t, unsigned n) {{ return f{count - 1}(s, t, n); }}\n"
    source.write_text("".join(c_function(n) for n in range(count)) + last)
    return process(asked.stdout.strip(), "-quiet", "-O2", source, "-o", folder / "big.s")


PYTHON = """
import collections, hashlib, json, random, re
class Point:
    def __init__(self, x, y): self.x, self.y = x, y
    def __lt__(self, other): return (self.x, self.y) < (other.x, other.y)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def words(n): return [hashlib.md5(str(i).encode()).hexdigest() for i in range(n)]
def gen(n):
    for i in range(n):
        yield i * i % 7
while True:
    fib(16)
    w = words(500)
    d = collections.Counter(x[:2] for x in w)
    json.loads(json.dumps({"a": w, "b": dict(d), "c": [1.5, None, True] * 50}))
    sorted(Point(random.random(), i) for i in range(300))
    re.sub(r"([a-f]+)(\\d)", lambda m: m.group(2) + m.group(1), " ".join(w[:50]))
    sum(gen(2000)); [x for x in map(str, range(1000)) if "7" in x]
    2 ** 3000 // 7 ** 300
"""


def python(*candidates: str) -> Callable[[Path], Running]:
    def run(folder: Path) -> Running:
        script = folder / "work.py"
        script.write_text(PYTHON)
        found = [path for pattern in candidates for path in sorted(Path("/").glob(pattern))]
        if not found:
            raise NotHere(f"there is no {candidates[0]}")
        return process(found[-1], script)

    return run


NODE = """
class Tree { constructor(d) { this.v = d; if (d) { this.l = new Tree(d - 1); this.r = new Tree(d - 1); } }
    sum() { return this.v + (this.l ? this.l.sum() + this.r.sum() : 0); } }
const words = []; for (let i = 0; i < 2000; i++) words.push((i * 7919 % 10007).toString(36));
let total = 0;
for (;;) {
    total += new Tree(9).sum();
    const text = JSON.stringify(words.map((w, i) => ({ w, i, list: [i, i / 3, null, w + i] })));
    total += JSON.parse(text).filter(o => o.i % 3).reduce((a, o) => a + o.list[0], 0);
    const m = new Map(); for (const w of words) m.set(w, (m.get(w) || 0) + 1);
    total += [...m.keys()].sort().join('').replace(/[aeiou]+(\\d)/g, (_, d) => d).length;
    total += words.slice().sort((a, b) => a < b ? 1 : -1).length;
}
"""


def node(folder: Path) -> Running:
    script = folder / "work.js"
    script.write_text(NODE)
    return process(need("node"), script)


GO = """package main
import ("encoding/json"; "fmt"; "runtime"; "sort"; "strings"; "sync"; "time")
type item struct { Name string; N int; List []float64; Next *item }
func build(n int) *item { if n == 0 { return nil }
	return &item{fmt.Sprintf("item %d", n), n, []float64{float64(n) / 3, 1.5}, build(n - 1)} }
func work(seed int, out chan<- int) {
	for i := 0; i < 50; i++ {
		text, _ := json.Marshal(build(60)); var back item; json.Unmarshal(text, &back)
		m := map[string]int{}
		for j := 0; j < 1000; j++ { m[fmt.Sprint(j*seed%997)] += j }
		keys := make([]string, 0, len(m)); for k := range m { keys = append(keys, k) }
		sort.Slice(keys, func(a, b int) bool { return keys[a] < keys[b] })
		out <- len(strings.Join(keys, ",")) + len(text)
		if i%10 == 0 { time.Sleep(time.Microsecond); runtime.Gosched() }
	}
}
func main() { out := make(chan int, 4); total := 0
	go func() { for n := range out { total += n } }()
	for { var all sync.WaitGroup
		for g := 1; g <= 4; g++ { all.Add(1); go func(g int) { defer all.Done(); work(g, out) }(g) }
		all.Wait() } }
"""


def go(folder: Path) -> Running:
    source, program = folder / "work.go", folder / "gowork"
    source.write_text(GO)
    places = {"GOCACHE": str(folder / "cache"), "HOME": str(folder), "GO111MODULE": "off"}
    command = [need("go"), "build", "-o", str(program), str(source)]
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, **places})
    return process(program, env={**os.environ, "GOMAXPROCS": "2"})


RUST = """use std::collections::{BTreeMap, HashMap};
#[derive(Debug, Clone)] enum Node { Leaf(u64), Fork(Box<Node>, Box<Node>) }
fn tree(d: u64) -> Node { if d == 0 { Node::Leaf(d) } else {
    Node::Fork(Box::new(tree(d - 1)), Box::new(tree(d - 1))) } }
fn sum(n: &Node) -> u64 { match n { Node::Leaf(v) => *v + 1, Node::Fork(a, b) => sum(a) + sum(b) } }
fn work(seed: u64) -> usize {
    let mut m: HashMap<String, u64> = HashMap::new();
    for i in 0..2000u64 { *m.entry(format!("{:x}", i * seed % 997)).or_insert(0) += i; }
    let b: BTreeMap<_, _> = m.iter().map(|(k, v)| (v, k.clone())).collect();
    let mut v: Vec<_> = b.values().cloned().collect(); v.sort_by(|x, y| y.cmp(x));
    let text = v.join(",");
    let floats: f64 = text.split(',').filter_map(|t| t.parse::<f64>().ok()).map(|x| x.sin()).sum();
    text.len() + floats as usize + sum(&tree(10)) as usize + format!("{:?}", tree(4)).len()
}
fn main() {
    let threads: Vec<_> = (1..3).map(|s| std::thread::spawn(move || {
        let mut t = 0usize; loop { t = t.wrapping_add(std::hint::black_box(work(s))); }
    })).collect();
    for t in threads { let _: () = t.join().unwrap(); }
}
"""


def rust(folder: Path) -> Running:
    source, program = folder / "work.rs", folder / "rustwork"
    source.write_text(RUST)
    subprocess.run([need("rustc"), "-O", "-o", program, source], check=True, capture_output=True)
    return process(program)


@contextlib.contextmanager
def recurse(_folder: Path) -> Iterator[int]:
    with running("recurse", 200) as child:
        yield child.pid


PROGRAMS: dict[str, Callable[[Path], Running]] = {
    "redis-server": redis,
    "postgres": postgres,
    "sqlite3": sqlite,
    "xz -9": xz,
    "cc1 -O2": cc1,
    "python 3.11": python("usr/bin/python3.11"),
    "python 3.13": python(
        "usr/bin/python3.13",
        "usr/local/bin/python3.13",
        *((str(Path.home() / ".pyenv/versions/3.13*/bin/python3.13")[1:],)),
    ),
    "node": node,
    "go": go,
    "rust": rust,
    "recurse 200": recurse,
}
