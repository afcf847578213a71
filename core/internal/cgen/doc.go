/*
Package cgen writes C from Go: the steps on shared memory of an object, which are written once, in a strict subset of Go, and
of which C has the generated half. The command is cgen/cmd/cgen; packages call it by go:generate.

# The subset

The same text must mean the same in both languages. What could differ is refused, with its file and line.

  - Types: bool, intN and uintN, unsafe.Pointer, named types of these, structs, arrays of constant length in structs,
    pointers to all of these. A pointer to an array is a pointer to its first element in C. No int, uint or uintptr.
  - Functions and methods with at most one result. Methods are plain functions in C, whose first parameter is the receiver.
  - Statements: var and :=, one assignment at a time, if (without an init statement), for, range over an integer,
    switch, break, continue, return, calls. No name hides another local name.
  - Arithmetic on unsigned integers of 32 and 64 bits only. Signed ones are compared and converted: their overflow is
    undefined in C.
  - A divisor is a constant. A shift count or an index of an array is a constant within its bounds, or is masked to them (e&31, e%n):
    Go defines what happens beyond, or checks, and C does neither.
  - At most one operand of an expression calls a function that reads or writes memory: C leaves the order of operands open.
    Functions of integers alone (packers and unpackers of words) are free of this rule.
  - Strings are literals, as arguments of functions that are written by hand in each language.
  - Everything else is refused: closures, interfaces, generics, maps, slices, channels, goto, defer, package variables.

A struct that lies in shared memory is marked //c:shared. It has fixed-width fields and no implicit padding, and C asserts the offset of
each. Its fields are never read or written as such: a step passes their addresses to package shm/mem, whose functions
name the memory order and become __atomic builtins in C (capi/front/mem.h).

# Names

With the prefix pp__queue, the Go name commitGet is pp__queue_commit_get, the type cell is pp__queue_cell, its method load is
pp__queue_cell_load, the constant chunkHead is PP__QUEUE_CHUNK_HEAD. Locals and fields are snake_case. Directives say otherwise:

	//c:shared            on a struct: it lies in shared memory
	//c:name NAME         the C name of a type or constant
	//c:methods PREFIX    on a type: its methods are PREFIX and their name
	//c:extern NAME       C has this type, constant or function by hand. Of a type, layouts are still asserted; of a
	                      constant, its value; of a function, its prototype is written, so that the compiler compares them
	//c:type NAME         on a field or constant: its C type; a field's has the same size
	//c:go                in a comment: it is for readers of Go, and left out. On a constant or a function: C does not have it

Pointers through which a function only reads are const in C, local variables that keep their value too.
*/
package cgen
