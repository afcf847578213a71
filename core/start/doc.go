/*
Package start starts processes and watches over them. It knows nothing of tasks, pickles or pools: it takes a
[Spec], hands back a [Process], and tells how that ended.

# How data flows

	parent                                             child
	------                                             -----
	Spec.Args, Env, Dir ----------- execve ----------> its arguments, environment, directory
	Spec.Files ---------- same descriptor numbers ---> the files; of all others nothing, close-on-exec or not
	Spec.Stdin, Stdout, Stderr ----------------------> 0, 1, 2; without them: the parent's
	Spec.Payload -> sealed memfd -- fd, inherited ---> Receive (Go) or pp_init (C): the same bytes
	pid, flags ----- POLYPROC_PROCESS="fd,pid,flags"-> WatchParent: polls the parent's pidfd, dies with it

	Process.Done, OnExit, Status <- supervisor <- epoll <- pidfd <------ its end, by whatever cause

One goroutine supervises all children, woken through Go's own poller, so that no thread waits for a child, let alone
one for each. It starts with the first child and goes with the last, and so do its descriptors. A child is named by
its pidfd, never by its number alone: no signal reaches a stranger, and a host that ignores SIGCHLD or calls
waitpid(-1) costs at most the exit status ([Status].Known). Every child is reaped at once, waited for or not.

# Start methods

[Spawn] executes a program afresh: vfork-style (CLONE_VFORK|CLONE_VM), so that it takes as long from a host of
many gigabytes as from a small one. It is all that Go has.

fork is a host's own fork(), in C or Python: a Go runtime does not survive it, and the library in the child serves itself
from a fresh copy, loaded at first need. forkserver is a small process that never loads Go and forks on request.
Both come as further [Method]s that [Lookup] finds, or, where the fork happens in the host's language, as a way for
the host to hand a pid over to the supervisor; nothing else here depends on how a child came to be.

# Decisions

  - Children that are to die with their parent watch it themselves. PR_SET_PDEATHSIG fires when the creating thread ends,
    a pipe's end of file comes late when a forked sibling holds the other end, and a job of the parent's dies with it.
  - Descriptors of ours stay above 2, even in a host that has closed those: its next printf must not meet them.
    In such a host's children 0, 1 and 2 are /dev/null.
  - Nothing is inherited that was not passed. What the host has open without close-on-exec is closed in the
    child, as found in /proc/self/fd, with a margin for what other threads open meanwhile.
  - The child's signal mask is the starting thread's, plus SIGINT if asked. Ignored signals stay ignored, as exec has it.

# Platforms

Linux (5.4 or later) is tested. darwin and freebsd use kqueue where Linux uses epoll and pidfds; a payload is an unlinked
file there. windows uses a handle list, one waiting thread per child, and a job object that ends the
children with [FlagWatchParent] when the parent ends. What a platform lacks is an [ErrUnsupported].
*/
package start
