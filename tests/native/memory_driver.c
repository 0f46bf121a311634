/* memory.h against memory that is really there, and memory that is not.  Prints one line for each question,
 * "name answer". */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>


/* sys.h has names of its own for what the C library's headers define: both can't be in one file, so this
 * one declares the few of memory.h's it calls, which memory_driver_stub.c gives external names. */
int readable(unsigned long page);
int copy(unsigned pid, unsigned *forbidden, void *to, unsigned long from, unsigned long bytes);

static char buffer[64];

static void say(const char *name, long answer)
{
	printf("%s %ld\n", name, answer);
}

static void ask_copy(const char *way, unsigned forbidden_at_first, unsigned long page)
{
	static const struct {
		const char *name;
		long offset;
		unsigned long bytes;
	} question[] = {
		{"inside", 100, 64}, {"last", 4096 - 64, 64}, {"over", 4096 - 63, 64}, {"gone", 4096, 8}, {"nothing", 0, 0},
	};
	unsigned forbidden = forbidden_at_first;
	char name[64];
	for (unsigned i = 0; i < sizeof(question) / sizeof(question[0]); i++) {
		unsigned long from = page + (unsigned long)question[i].offset;
		int got;
		memset(buffer, 0, sizeof(buffer));
		got = copy((unsigned)getpid(), &forbidden, buffer, from, question[i].bytes);
		snprintf(name, sizeof(name), "copy-%s-%s", way, question[i].name);
		say(name, got && memcmp(buffer, (void *)from, question[i].bytes) ? -1 : got);
	}
	snprintf(name, sizeof(name), "copy-%s-kernel", way);
	say(name, copy((unsigned)getpid(), &forbidden, buffer, 0xffffffff80000000UL, 8));
	snprintf(name, sizeof(name), "copy-%s-noncanonical", way);
	say(name, copy((unsigned)getpid(), &forbidden, buffer, 0x8000000000000000UL, 8));
	snprintf(name, sizeof(name), "copy-%s-wrapping", way);
	say(name, copy((unsigned)getpid(), &forbidden, buffer, ~0UL - 3, 8));
	snprintf(name, sizeof(name), "copy-%s-null", way);
	say(name, copy((unsigned)getpid(), &forbidden, buffer, 0, 8));
	snprintf(name, sizeof(name), "copy-%s-forbidden-after", way);
	say(name, forbidden);
}

int main(void)
{
	sigset_t before, after;
	unsigned long page = (unsigned long)mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long secret = (unsigned long)mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long constant = (unsigned long)mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 4096; i++)
		((char *)page)[i] = (char)(i * 7 + 1);
	memset((char *)page + 4096, 0xff, 4096); /* as a signal mask: all */
	memset(&before, 0, sizeof(before)); /* the kernel and the C library fill its first word only */
	memset(&after, 0, sizeof(after));
	sigaddset(&before, SIGUSR2);
	pthread_sigmask(SIG_SETMASK, &before, 0);
	pthread_sigmask(SIG_BLOCK, 0, &before);
	say("probe-first", readable(page));
	say("probe-second", readable(page + 4096));
	say("probe-constant", readable(constant));
	say("probe-secret", readable(secret));
	munmap((void *)(page + 4096), 4096);
	say("probe-first-again", readable(page));
	say("probe-gone", readable(page + 4096));
	say("probe-null", readable(0));
	say("probe-noncanonical", readable(0x8000000000000000UL));
	say("probe-kernel", readable(0xffffffff81000000UL));
	say("probe-last", readable(~4095UL));
	pthread_sigmask(SIG_BLOCK, 0, &after);
	say("mask-unchanged", !memcmp(&before, &after, sizeof(before)));
	ask_copy("kernel", 0, page);
	ask_copy("probed", 1, page);
	unsigned forbidden = 0;
	/* Where the kernel refuses (here: no such process) it is noted, and the copy made by hand. */
	say("copy-refused", copy(0x7fffffff, &forbidden, buffer, page, 8));
	say("copy-refused-forbidden-after", forbidden);
	return 0;
}
