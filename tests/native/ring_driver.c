/* Threads that write into one ring at once.
 *
 *     ring_driver FILE SIZE THREADS RECORDS MAX_DEPTH drop|wait
 *
 * FILE holds the shared memory, its control block filled in.  Each thread tries to write RECORDS records
 * whose contents follow from its number and the record's; a full ring drops, or is waited for.  Prints
 * "thread NUMBER written N dropped N" for each.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ring.h"

static struct pa_control *control;
static pthread_barrier_t together;
static u32 records, max_depth;
static int waits;

struct writer {
	pthread_t thread;
	u32 number;
	u64 written, dropped;
};

static u64 mix(u64 x)
{
	x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15UL;
	return x ^ (x >> 29);
}

static int write_one(u32 number, u32 sequence)
{
	u64 frames[1024], position;
	u32 depth = 1 + (u32)(mix(sequence) % max_depth);
	struct pa_record head = {
		.clock_ns = ((u64)number << 32) | sequence,
		.tid = number,
		.depth = (u16)depth,
		.end = (u8)(sequence % 9),
		.weight = sequence + 1,
		.slot = number,
	};
	for (u32 i = 0; i < depth; i++)
		frames[i] = ((u64)number << 48) | ((u64)sequence << 16) | i;
	while (!ring_reserve(control, RECORD_HEAD_WORDS + depth, &position)) {
		if (!waits)
			return 0;
		sched_yield();
	}
	ring_write(control, position, &head, frames);
	return 1;
}

static void *work(void *arg)
{
	struct writer *w = arg;
	pthread_barrier_wait(&together);
	for (u32 sequence = 0; sequence < records; sequence++) {
		if (write_one(w->number, sequence))
			w->written++;
		else
			w->dropped++;
	}
	return 0;
}

int main(int argc, char **argv)
{
	static struct writer writers[64];
	u32 threads;
	int fd;
	if (argc != 7 || (fd = open(argv[1], O_RDWR)) < 0)
		return 2;
	control = mmap(0, strtoul(argv[2], 0, 0), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	threads = (u32)atoi(argv[3]);
	records = (u32)atoi(argv[4]);
	max_depth = (u32)atoi(argv[5]);
	waits = !strcmp(argv[6], "wait");
	if (control == MAP_FAILED || threads > 64 || max_depth > 1024)
		return 2;
	pthread_barrier_init(&together, 0, threads);
	for (u32 i = 0; i < threads; i++) {
		writers[i].number = i;
		if (pthread_create(&writers[i].thread, 0, work, &writers[i]))
			return 2;
	}
	for (u32 i = 0; i < threads; i++)
		pthread_join(writers[i].thread, 0);
	for (u32 i = 0; i < threads; i++)
		printf("thread %u written %lu dropped %lu\n", i, writers[i].written, writers[i].dropped);
	return 0;
}
