//go:build linux

package pipe_test

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/polyproc/polyproc/core/pipe"
)

func ExampleConn() {
	a, b, err := pipe.New(nil, true)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = b.Close() }()
	ctx := context.Background()
	go func() { // or another process, to which the end went by MarshalBinary
		_ = a.Send(ctx, []byte("one"))
		_ = a.Send(ctx, []byte("two"))
		_ = a.Close()
	}()
	for {
		message, err := b.Recv(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		fmt.Printf("%s\n", message)
	}
	fmt.Println(errors.Is(b.Send(ctx, nil), pipe.ErrBroken))
	// Output:
	// one
	// two
	// true
}

func ExampleListen() {
	ctx := context.Background()
	l, err := pipe.Listen("tcp", "127.0.0.1:0", []byte("a key"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = l.Close() }()
	go func() { // or, in Python: Client(("127.0.0.1", port), authkey=b"a key").send_bytes(b"hello")
		s, err := pipe.Dial(ctx, "tcp", l.Addr().String(), []byte("a key"))
		if err == nil {
			_ = s.Send(ctx, []byte("hello"))
			_ = s.Close()
		}
	}()
	s, err := l.Accept(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	message, err := s.Recv(ctx)
	fmt.Printf("%s %v\n", message, err)
	// Output: hello <nil>
}
