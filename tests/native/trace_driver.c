/* A child to be traced.
 *
 *     trace_driver busy|blocked|vfork
 *
 * Says "ready" and its pid once it is where it is said to be.  SIGUSR1 makes it say "caught N" (so many times
 * by now); one byte or the end of its stdin ends it, with "done".  vfork: the process sleeps in vfork, in
 * uninterruptible sleep (state D), until its stdin has a byte.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t caught;

static void say(const char *text)
{
	if (write(1, text, strlen(text)) < 0)
		_exit(3);
}

static void on_signal(int signo)
{
	char text[32];
	(void)signo;
	snprintf(text, sizeof(text), "caught %d\n", (int)++caught);
	say(text);
}

static void ready(void)
{
	char text[32];
	snprintf(text, sizeof(text), "ready %d\n", (int)getpid());
	say(text);
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	char byte;
	if (argc != 2)
		return 2;
	sigaction(SIGUSR1, &action, 0);
	if (!strcmp(argv[1], "vfork")) {
		if (vfork() == 0) {
			say("ready 0\n");
			_exit(read(0, &byte, 1) < 0);
		}
	} else if (!strcmp(argv[1], "busy")) {
		fcntl(0, F_SETFL, O_NONBLOCK);
		ready();
		while (read(0, &byte, 1) < 0)
			for (volatile int i = 0; i < 100000; i++)
				;
	} else {
		ready();
		while (read(0, &byte, 1) < 0)
			;
	}
	say("done\n");
	return 0;
}
