"""Stacks of real programs are whole: from where the tick hit to where the thread began."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from support import COMMON_FLAGS, Target, build_target, requires
from test_attach_run import Folded, Spawn, attach, cpu_time_s, pyattach

TRUNCATED = "[truncated]"
DEPTH = 200

STORM = """
#include "target.h"

#include <dlfcn.h>

static _Atomic int stopping;

static void *stormy(void *argument) {
    unsigned long rounds = 0, right = 0;
    uint64_t expected = 0;
    while (!atomic_load(&stopping)) {
        void *library = dlopen(argument, RTLD_NOW);
        if (!library)
            die(dlerror());
        uint64_t got = ((uint64_t(*)(uint64_t))dlsym(library, "late_work"))(7);
        expected = rounds++ ? expected : got;
        right += got == expected;
        dlclose(library);
    }
    printf("rounds %lu right %lu\\n", rounds, right);
    return NULL;
}

NAMED static void *steady_work(void *argument) {
    uint64_t x = 1;
    while (!atomic_load(&stopping))
        x = burn(x, 10000);
    return argument;
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    pthread_t storm = start_thread("storm", stormy, argv[1]), steady = start_thread("steady", steady_work, 0);
    ready();
    wait_for_end_of_stdin();
    atomic_store(&stopping, 1);
    pthread_join(storm, NULL);
    pthread_join(steady, NULL);
    puts("done");
    return 0;
}
"""


def folded_of(target: Target, path: Path, *arguments: object, duration: str = "1s") -> Folded:
    attach(target.pid, "-d", duration, "--hz", "250", "-o", path, *arguments)
    return Folded(path)


def begins_at_the_program(stack: tuple[str, ...]) -> bool:
    """_start, libc's two functions, of which one may have no name, main: or at least main near the root."""
    return stack[0].startswith("_start") and "main" in stack[:4]


@pytest.mark.parametrize(
    "flags", [(), ("-fomit-frame-pointer",), ("-static",)], ids=["fp", "no-fp", "static"]
)
def test_deep_stacks_reach_the_program_s_start(spawn: Spawn, tmp_path: Path, flags: tuple[str, ...]) -> None:
    program = build_target("recurse", *flags)
    with spawn(program, DEPTH) as target:
        found = folded_of(target, tmp_path / "o.folded")
        target.finish()
    assert found.total > 50
    assert TRUNCATED not in found.inclusive()
    for stack in found.stacks:
        assert begins_at_the_program(stack), stack
    deep = [stack for stack in found.stacks if "deep_leaf" in stack]
    assert sum(found.stacks[stack] for stack in deep) > 0.5 * found.total
    for stack in deep:
        assert stack[-DEPTH - 1 :] == (*("recurse",) * DEPTH, "deep_leaf")


def test_stacks_deeper_than_asked_for_are_marked_and_counted(spawn: Spawn, tmp_path: Path) -> None:
    svg, folded = tmp_path / "o.svg", tmp_path / "o.folded"
    with spawn("recurse", DEPTH) as target:
        run = attach(target.pid, "-d", "1s", "--max-depth", "50", "-o", svg, "-o", folded)
        target.finish()
    found = Folded(folded)
    cut = {stack: ticks for stack, ticks in found.stacks.items() if stack[0] == TRUNCATED}
    assert sum(cut.values()) > 0.5 * found.total
    assert all(len(stack) == 51 and stack[1:-1] == ("recurse",) * 49 for stack in cut)
    assert TRUNCATED in svg.read_text()
    assert f"{sum(cut.values()):,}" in run.err, run.err
    assert "deeper than --max-depth" in run.err


@pytest.mark.parametrize("name", ["auto", "fp"])
def test_a_chain_of_frame_pointers(spawn: Spawn, tmp_path: Path, name: str) -> None:
    """By frame pointers alone: the caller of deep_leaf, which has set up none, is missed, and only that."""
    program = build_target("recurse", "-fno-omit-frame-pointer", "-momit-leaf-frame-pointer")
    with spawn(program, 20) as target:
        found = folded_of(target, tmp_path / "o.folded", "--unwind", name)
        target.finish()
    deep = {stack: ticks for stack, ticks in found.stacks.items() if "deep_leaf" in stack}
    assert sum(deep.values()) > 0.5 * found.total
    shown = 19 if name == "fp" else 20
    for stack in deep:
        assert stack[stack.index("main") + 1 :] == (*("recurse",) * shown, "deep_leaf")


def test_a_library_loaded_while_sampled(spawn: Spawn, tmp_path: Path) -> None:
    """It has no frame pointers: only its tables, known from the next look at the maps, lead out of it."""
    library = build_target("lib_late", "-shared", "-fPIC", "-fomit-frame-pointer")
    out = tmp_path / "o.folded"
    with spawn("dlopener", library) as target, pyattach(target.pid, "-o", out, folder=tmp_path) as run:
        run.wait_sampling(target.pid)
        run.tell(signal.SIGUSR1)
        # By then it has imported all that it needs, and looks at the mappings at its pace.
        run.wait_until("it has answered", lambda: list(tmp_path.glob("*-snapshot.svg")))
        target.tell("open")
        target.expect("opened")
        begin_s = cpu_time_s(target.pid)
        run.wait_until("two seconds' work in it", lambda: cpu_time_s(target.pid) > begin_s + 2)
        target.tell("close")
        target.expect("closed")
        target.finish()
        run.finish()
    found = Folded(out)
    late = {stack: ticks for stack, ticks in found.stacks.items() if "late_inner" in stack}
    whole = {stack: ticks for stack, ticks in late.items() if begins_at_the_program(stack)}
    assert sum(late.values()) > 50
    # Before the tables were known, for a tenth of a second, some may have gone astray.
    assert sum(whole.values()) >= 0.75 * sum(late.values()), late
    for stack in whole:
        assert stack[stack.index("main") :] == ("main", "late_work", "late_inner")


def test_libraries_that_come_and_go(spawn: Spawn, tmp_path: Path) -> None:
    """The handler may be in a library's tables at the moment that they are unmapped."""
    source, program = tmp_path / "storm.c", tmp_path / "storm"
    source.write_text(STORM)
    targets = Path(__file__).parent / "targets"
    command = ["cc", "-std=gnu11", *COMMON_FLAGS, f"-I{targets}", str(source), "-o", str(program), "-ldl"]
    subprocess.run(command, check=True)
    library = build_target("lib_late", "-shared", "-fPIC", "-O0")
    with spawn(program, library) as target:
        found = folded_of(target, tmp_path / "o.folded", "--hz", "2000", duration="5s")
        output = target.finish()
    rounds, right = map(int, re.findall(r"\d+", output.splitlines()[0]))
    assert rounds == right > 100
    assert output.splitlines()[-1] == "done"
    steady = {stack: ticks for stack, ticks in found.stacks.items() if "steady_work" in stack}
    assert sum(steady.values()) > 100
    assert all(stack[0] != TRUNCATED for stack in steady)
    stormy = {stack: ticks for stack, ticks in found.stacks.items() if "stormy" in stack}
    assert sum(stormy.values()) > 100


def test_threads_begin_where_they_were_started(spawn: Spawn, tmp_path: Path) -> None:
    with spawn("threads", 3, 0) as target:
        found = folded_of(target, tmp_path / "o.folded")
        target.finish()
    busy = [stack for stack in found.stacks if "busy_thread" in stack]
    assert sum(found.stacks[stack] for stack in busy) > 0.9 * found.total
    for stack in busy:
        # clone3 and start_thread, which have names only where libc has symbols.
        assert stack.index("busy_thread") == 2, stack
        assert all(re.match(r"libc\.so|(__)?(GI_+)?clone|start_thread", name) for name in stack[:2]), stack
        assert stack[2:] in {("busy_thread",), ("busy_thread", "busy_work")}


GO = """
package main

import ("fmt"; "os"; "sort")

func allocate(n int) []string {
	out := make([]string, 0)
	for i := 0; i < n; i++ { out = append(out, fmt.Sprint(i*7919%1009)) }
	sort.Strings(out)
	return out
}

func worker(out chan<- int) { for { out <- len(allocate(3000)) } }

func main() {
	out, total := make(chan int), 0
	for i := 0; i < 3; i++ { go worker(out) }
	go func() { for n := range out { total += n } }()
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
}
"""


def test_go_s_stacks_lead_from_its_runtime_back_to_the_goroutine(spawn: Spawn, tmp_path: Path) -> None:
    """Without tables; the garbage collector and the scheduler work on other stacks than the goroutines."""
    (tmp_path / "work.go").write_text(GO)
    environment = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"}
    command = [requires("go"), "build", "-o", "gowork", "work.go"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=100)
    folded = tmp_path / "o.folded"
    with spawn(tmp_path / "gowork") as target:
        attach(target.pid, "--hz", "500", "-d", "4", "-o", folded)
        target.finish()
    found = Folded(folded)
    assert found.total > 500
    assert found.inclusive()[TRUNCATED] <= 0.01 * found.total, found.stacks
    switched = [
        stack for stack in found.stacks if "main.allocate" in stack and "runtime.systemstack.abi0" in stack
    ]
    assert switched or "systemstack" not in str(found.stacks)


@pytest.mark.parametrize("clock", ["timer", "perf"])
def test_signal_stacks_of_8_kb_are_enough(spawn: Spawn, tmp_path: Path, clock: str) -> None:
    """As Rust's threads have them; the kernel's own part of them grows with the processor's registers, and
    two signals at a time leave no room."""
    out = tmp_path / "o.folded"
    with spawn("small_altstack", 8192) as target:
        run = attach(target.pid, "-d", 5, "--hz", 997, "--clock", clock, "-o", out)
        assert target.process.poll() is None
    assert "too small for two signals" in run.err
    found = Folded(out)
    assert found.total > 500
    assert sum(ticks for stack, ticks in found.stacks.items() if stack[0] == TRUNCATED) < 0.01 * found.total


BELOW_MUSL = """\
#include <signal.h>
#include <unistd.h>
static volatile unsigned long x;
__attribute__((noinline)) void work(void) { for (;;) x++; }
__attribute__((noinline)) void in_handler(int number) { (void)number; write(1, "ready\\n", 6); for (;;) x++; }
int main(void) { signal(SIGALRM, in_handler); ualarm(1000, 0); work(); }
"""


def test_stacks_lead_out_of_a_handler_that_nothing_describes(spawn: Spawn, tmp_path: Path) -> None:
    """musl's code that returns from one is in no table, and neither is any other's of it."""
    source, program, folded = tmp_path / "program.c", tmp_path / "program", tmp_path / "o.folded"
    source.write_text(BELOW_MUSL)
    flags = ("-O1", "-fomit-frame-pointer", "-fasynchronous-unwind-tables")
    subprocess.run([requires("musl-gcc"), *flags, source, "-o", program], check=True)
    with spawn([program]) as target:
        attach(target.pid, "-d", "500ms", "-o", folded)
        target.kill()
    stacks = Folded(folded)
    for function in ("main", "work", "in_handler"):
        assert stacks.inclusive()[function] > 0.9 * stacks.total
