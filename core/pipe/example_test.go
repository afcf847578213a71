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
