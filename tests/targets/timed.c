/* The main thread waits in recv on a socket whose time limit is never reached, until stdin ends; prints "eintr N", how
 * often that was interrupted. */
#include "target.h"

#include <sys/socket.h>
#include <sys/time.h>

static int sockets[2];

static void *tell_the_end(void *unused) {
    wait_for_end_of_stdin();
    close(sockets[1]);
    return unused;
}

int main(void) {
    struct timeval limit = {.tv_sec = 100000};
    unsigned long interruptions = 0;
    char c;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) ||
        setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit))
        die("socket");
    start_thread("stdin", tell_the_end, NULL);
    ready();
    while (recv(sockets[0], &c, 1, 0) < 0 && errno == EINTR)
        interruptions++;
    printf("eintr %lu\n", interruptions);
    return 0;
}
