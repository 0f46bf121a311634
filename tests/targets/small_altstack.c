/* Two threads that work on signal stacks of so many bytes, below which nothing may be touched.
 *
 *     small_altstack BYTES
 */
#include "target.h"

#include <signal.h>
#include <sys/mman.h>

static size_t bytes;

static int by_value(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

static void *work(void *unused)
{
	size_t whole = (bytes + 4095) & ~4095UL;
	char *memory = mmap(NULL, whole + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), text[64];
	int numbers[500];
	volatile double sum = 0;
	if (memory == MAP_FAILED || mprotect(memory, 4096, PROT_NONE))
		die("memory");
	/* It begins where the page that may not be touched ends. */
	stack_t small = {.ss_sp = memory + 4096, .ss_size = bytes};
	if (sigaltstack(&small, NULL))
		die("sigaltstack");
	for (unsigned round = 0;; round++) {
		for (int i = 0; i < 500; i++)
			numbers[i] = (int)((round + (unsigned)i) * 2654435761U >> 8);
		qsort(numbers, 500, sizeof numbers[0], by_value);
		snprintf(text, sizeof text, "%g %d", numbers[7] / 3.0, numbers[8]);
		sum += strtod(text, NULL);
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];
	if (argc != 2)
		return 2;
	bytes = strtoul(argv[1], NULL, 10);
	for (int i = 0; i < 2; i++)
		if (pthread_create(&threads[i], NULL, work, NULL))
			die("thread");
	ready();
	pause();
	return 0;
}
