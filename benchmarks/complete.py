"""How many stacks are complete?  Programs as they are distributed, nothing rebuilt, sampled at work.

A stack is complete when the walk ended at the thread's first function.  "at root" is stricter: the share of
stacks whose outermost function is one that threads are known to begin in, by name.  For what is missing,
the reasons and the functions where the walks ended are listed.  Where ``perf`` may be used, it samples the
same process at the same time with ``--call-graph dwarf``, and the shares of the functions that ran are
compared: the total variation distance, beside what two equally large samples of the same would differ by.
"""

from __future__ import annotations

import argparse
import array
import collections
import contextlib
import dataclasses
import os
import pwd
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from common import machine, running, table

from pyattach.attacher.samples import SampleStore
from pyattach.attacher.session import Options, Session
from pyattach.attacher.target import TargetProcess
from pyattach.errors import PyattachError
from pyattach.inject.layout import End
from pyattach.symbols.address import InstructionPointer, ReturnAddress
from pyattach.symbols.frame import TRUNCATED, FrameKind
from pyattach.symbols.maps import Maps

GOAL_PERCENT = 99.5
SHUFFLES = 20
NOISE_FACTOR = 2.0
RATE_HZ = 997.0
START_DEADLINE_S = 30.0
WARM_UP_S = 0.7
ROOTS = re.compile(
    r"\[(entry|clone)\]|(_start|(__)?clone3?|start_thread|thread_start|runtime\.(goexit|mstart|mcall|rt0_go|clone)|_rt0_amd64_linux)\b.*"
)
"""Functions that a thread, or a goroutine, begins in.  The program's entry point, and libc's code that calls
a thread's function and then exits, have names only where there are symbols."""
THREAD_EXITS = bytes.fromhex("89c7b83c0000000f05")
"""mov %eax,%edi; mov $SYS_exit,%eax; syscall: behind the call in glibc's clone and clone3, or with %rax."""


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


# The programs.  Each is a context manager that yields the process id to attach to.


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


# Sampling.


class Ends(SampleStore):
    """Keeps, besides, how each incomplete stack ended and where, and the addresses that ran."""

    def __init__(self, store: SampleStore, target: TargetProcess) -> None:
        super().__init__(store._resolver)
        self.cut: collections.Counter[tuple[int, tuple[int, ...]]] = collections.Counter()
        self.leaves: collections.Counter[int] = collections.Counter()
        self.target, self.entry = target, entry_point(target.pid)
        self.outermost: collections.Counter[int] = collections.Counter()

    def add(self, samples: Iterable[tuple[int, int, int, tuple[int, ...]]]) -> None:
        samples = list(samples)
        for _tid, end, weight, frames in samples:
            if frames:
                self.leaves[frames[0]] += weight
            if frames and end != End.ROOT:
                self.cut[end, frames] += weight
            elif frames:
                self.outermost[frames[-1]] += weight
        super().add(samples)

    def names(self, addresses: Iterable[tuple[int, int]]) -> collections.Counter[str]:
        """Ticks by function, for addresses that ran."""
        out: collections.Counter[str] = collections.Counter()
        for address, weight in addresses:
            frame = self._resolver.resolve(InstructionPointer(address))
            # One bin for all code of a file, or made at run time, that has no names.
            nameless = frame.kind in (FrameKind.JIT, FrameKind.UNKNOWN)
            out[frame.module if nameless else f"{frame.name} ({frame.module})"] += weight
        return out

    def at(self, address: int, size: int) -> bytes:
        with contextlib.suppress(OSError):
            return self.target.read(address, size)
        return b""

    def roots(self) -> collections.Counter[str]:
        """Outermost functions of the complete stacks."""
        out: collections.Counter[str] = collections.Counter()
        for address, weight in self.outermost.items():
            # A stripped program's entry point has no name; its code, up to the call, is 40 bytes or so.
            if 0 < address - self.entry <= 64:
                out["[entry]"] += weight
            elif self.at(address, 10).removeprefix(b"\x48").startswith(THREAD_EXITS):
                out["[clone]"] += weight
            else:
                frame = self._resolver.resolve(ReturnAddress(address))
                out[frame.module if frame.kind is FrameKind.JIT else frame.name] += weight
        return out

    def where_cut(self) -> collections.Counter[str]:
        """Reason, and the outermost functions found, of incomplete stacks."""
        out: collections.Counter[str] = collections.Counter()
        for (end, frames), weight in self.cut.items():
            at = [InstructionPointer(frames[0]), *(ReturnAddress(address) for address in frames[1:])]
            outer = " < ".join(self._resolver.resolve(a).name[:50] for a in reversed(at[-3:]))
            out[f"{End(end).name}: {outer}{' (leaf)' if len(frames) == 1 else ''}"] += weight
        return out


@dataclasses.dataclass
class Measured:
    samples: int
    complete_percent: float
    root_percent: float
    ends: dict[str, int]
    handler_ns: float | None
    hit_percent: float
    mean_depth: float
    cut: collections.Counter[str]
    other_roots: collections.Counter[str]
    distance: str
    apart: str


class Perf:
    """``perf record`` on the same process, if it is allowed here."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.data, self.why_not, self._child = folder / "perf.data", "", None
        perf = shutil.which("perf")
        if perf is None:
            self.why_not = "perf is not installed"
            return
        command = [perf, "record", "-q", "-e", "cpu-clock", "-F", "250", "--call-graph", "dwarf,4096"]
        self._child = subprocess.Popen(
            [*command, "-p", str(pid), "-o", str(self.data)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def stop(self) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGINT)
            errors = self._child.communicate(timeout=60)[1].decode(errors="replace").strip()
            if not self.data.exists():
                self.why_not = f"perf can't: {errors.splitlines()[0] if errors else 'it wrote nothing'}"

    def leaves(self, maps: Maps) -> collections.Counter[int]:
        """Where it found the program in its own code; not the kernel's, and not in our handler."""
        out: collections.Counter[int] = collections.Counter()
        command = ["perf", "script", "-i", str(self.data), "-F", "ip,dso", "--no-inline", "--max-stack", "64"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as script:
            assert script.stdout is not None
            seen = False
            for line in script.stdout:
                word, _, place = line.strip().partition(" ")
                if not word:
                    seen = False
                elif not seen and int(word, 16) < 1 << 47:
                    seen = True
                    address = address_of(int(word, 16), place[1:-1], maps)
                    if address is not None:
                        out[address] += 1
        return out


def address_of(number: int, place: str, maps: Maps) -> int | None:
    """perf shows offsets where it knows the file; None for what is not, or no longer, of the program."""
    for mapping in maps.executable():
        if mapping.path == place and mapping.offset <= number < mapping.offset + mapping.end - mapping.start:
            return mapping.start + number - mapping.offset
    found = maps.find(number)
    return number if found is not None and found.executable else None


def apart(counts: list[int], others: list[int]) -> float:
    n, m = sum(counts), sum(others)
    return sum(abs(a / n - b / m) for a, b in zip(counts, others, strict=True)) / 2


def distance(ours: collections.Counter[str], theirs: collections.Counter[str]) -> tuple[str, str]:
    """Total variation distance, and how far two samples of the same are apart: all samples are dealt out
    again by chance, to two hands of the same sizes, a number of times."""
    n, m = sum(ours.values()), sum(theirs.values())
    if not n or not m:
        return "no samples", ""
    names = list(ours | theirs)
    deck = [index for index, name in enumerate(names) for _ in range(ours[name] + theirs[name])]
    picks, chance = random.Random(1), []
    for _ in range(SHUFFLES):
        picks.shuffle(deck)
        hands = [collections.Counter(hand) for hand in (deck[:n], deck[n:])]
        chance.append(apart(*([hand[index] for index in range(len(names))] for hand in hands)))
    found = apart([ours[name] for name in names], [theirs[name] for name in names])
    by_size = sorted(names, key=lambda name: -abs(ours[name] / n - theirs[name] / m))
    worst = ", ".join(f"{name} {ours[name] / n:.1%} {theirs[name] / m:.1%}" for name in by_size[:4])
    noise = statistics.mean(chance)
    verdict = "agrees" if found < NOISE_FACTOR * noise else "DIFFERS"
    return f"{found:.3f} ({noise:.3f}; {m:,}) {verdict}", worst


def entry_point(pid: int) -> int:
    """AT_ENTRY of the auxiliary vector (getauxval(3)); 0 when there is none."""
    words = array.array("Q", Path(f"/proc/{pid}/auxv").read_bytes())
    return dict(zip(words[::2], words[1::2], strict=True)).get(9, 0)


def is_root(name: str) -> bool:
    return ROOTS.fullmatch(name) is not None


def measure(pid: int, samples: int, most_s: float, folder: Path) -> Measured:
    """Sample the process as ``pyattach PID`` does, but keep what that throws away."""
    with contextlib.ExitStack() as undo:
        target = undo.enter_context(TargetProcess(pid))
        before = target.maps()
        session = Session(target, Options(rate_hz=RATE_HZ, duration_s=most_s))
        undo.callback(session.close)
        store = session.store = Ends(session.store, target)
        perf = Perf(pid, folder)
        undo.callback(perf.stop)
        session.load()
        try:
            session.sample(lambda: store.samples >= samples, lambda progress: None)
            perf.stop()
            comparison = perf.why_not, ""
            if not perf.why_not:
                # The maps as they were before the stub came: what perf saw in the stub is left out.
                theirs = perf.leaves(before)
                comparison = distance(store.names(store.leaves.items()), store.names(theirs.items()))
        finally:
            session.detach()
        return result(session, store, comparison)


def result(session: Session, store: Ends, comparison: tuple[str, str]) -> Measured:
    profile = session.profile()
    slots = session.threads.used(session.shared.slots)
    hits, misses = sum(int(s.hits) for s in slots), sum(int(s.misses) for s in slots)
    merged = profile.merged()
    whole = sum(weight for stack, weight in merged.items() if stack[0] != TRUNCATED)
    frames = sum(weight * len(stack) for stack, weight in merged.items())
    roots = store.roots()
    rooted = sum(weight for name, weight in roots.items() if is_root(name))
    others = collections.Counter({name: weight for name, weight in roots.items() if not is_root(name)})
    total = max(1, store.samples)
    ends = {End(end).name: count for end, count in store.ends.most_common() if end != End.ROOT}
    unbelievable = total - whole - sum(ends.values())
    if unbelievable > 0:
        ends["NOT_CODE"] = unbelievable
    return Measured(
        samples=store.samples,
        complete_percent=100 * whole / total,
        root_percent=100 * rooted / total,
        ends=ends,
        handler_ns=profile.meta.handler_ns_per_sample,
        hit_percent=100 * hits / max(1, hits + misses),
        mean_depth=frames / total,
        cut=store.where_cut(),
        other_roots=others,
        distance=comparison[0],
        apart=comparison[1],
    )


def row(name: str, m: Measured) -> list[str]:
    cells = [
        name,
        f"{m.samples:,}",
        f"{m.complete_percent:.2f}",
        f"{m.root_percent:.2f}",
        f"{m.mean_depth:.1f}",
    ]
    cells.append("-" if m.handler_ns is None else f"{m.handler_ns:,.0f}")
    cells += [f"{m.hit_percent:.2f}", "met" if m.complete_percent >= GOAL_PERCENT else "NOT MET", m.distance]
    return cells


def details(name: str, m: Measured) -> None:
    if m.ends:
        reasons = ", ".join(f"{reason} {count}" for reason, count in m.ends.items())
        print(f"\n{name}: {reasons}")
        for place, count in m.cut.most_common(6):
            print(f"  {count:6}  {place}")
    if m.apart:
        print(f"\n{name}, furthest apart, ours and perf's: {m.apart}")
    if m.other_roots:
        roots = ", ".join(f"{place} {count}" for place, count in m.other_roots.most_common(5))
        print(f"\n{name}, complete but outermost in: {roots}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="500 samples each: to see that it works")
    parser.add_argument("--samples", type=int, metavar="N", help="so many of each program")
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"some of: {', '.join(PROGRAMS)}")
    chosen = parser.parse_args()
    samples, most_s = (500, 15.0) if chosen.quick else (10_000, 180.0)
    samples = chosen.samples or samples
    print(machine())
    rows, found = [], {}
    for name in chosen.programs or PROGRAMS:
        with contextlib.ExitStack() as undo:
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            try:
                pid = undo.enter_context(PROGRAMS[name](folder))
                time.sleep(WARM_UP_S)
                found[name] = measure(pid, samples, most_s, folder)
            except (NotHere, PyattachError, subprocess.CalledProcessError) as error:
                print(f"{name}: left out: {error}")
                continue
            rows.append(row(name, found[name]))
            print(f"{name}: {found[name].complete_percent:.2f}%", flush=True)
    print(
        f"\ncomplete and at root: percent of samples; goal {GOAL_PERCENT:g}% complete.  handler: ns a sample."
        "\nhits: of the rules' cache, percent.  perf: distance of functions' shares (noise; perf's samples),"
        f"\nand whether it is below {NOISE_FACTOR:g} times the noise\n"
    )
    head = ["program", "samples", "complete", "at root", "depth", "handler", "hits", "goal", "perf"]
    table(head, rows)
    for name, measured in found.items():
        details(name, measured)


if __name__ == "__main__":
    main()
