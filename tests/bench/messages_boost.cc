// messages_boost.cc - what messages.c measures, through Boost.Interprocess's message_queue: COUNT messages of 64 bytes, at most 1,000 in the queue.
//
// SPDX-License-Identifier: Apache-2.0
#include <boost/interprocess/ipc/message_queue.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

namespace bi = boost::interprocess;

int main(int argc, char **argv)
{
	char message[64] = "m";
	bi::message_queue::size_type size;
	unsigned priority;

	if (argc != 3)
		return 2;
	const long count = std::atol(argv[2]);
	const std::string name = "polyproc-bench-" + std::to_string(getpid());
	bi::message_queue queue(bi::create_only, name.c_str(), 1000, sizeof message);
	const pid_t child = fork();
	if (child == 0) {
		for (long i = 0; i <= count; i++)
			queue.send(message, sizeof message, 0);
		_exit(0);
	}
	queue.receive(message, sizeof message, size, priority); // it runs
	const auto start = std::chrono::steady_clock::now();
	for (long i = 0; i < count; i++)
		queue.receive(message, sizeof message, size, priority);
	const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
	std::printf("%.9f\n", took.count());
	waitpid(child, nullptr, 0);
	bi::message_queue::remove(name.c_str());
	return 0;
}
