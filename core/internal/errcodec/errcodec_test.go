package errcodec_test

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/internal/errcodec"
)

var errOurs = errors.New("one of ours")

// coded is a type that gob knows.
type coded struct {
	Code  int
	Cause error
}

func (c *coded) Error() string { return fmt.Sprintf("code %d: %v", c.Code, c.Cause) }
func (c *coded) Unwrap() error { return c.Cause }

// hidden is one whose cause gob does not see.
type hidden struct {
	Code  int
	cause error
}

func (h hidden) Error() string { return fmt.Sprintf("code %d: %v", h.Code, h.cause) }
func (h hidden) Unwrap() error { return h.cause }

// strange is one that gob does not know; it is what it says that it is.
type strange struct{ Secret chan int }

func (strange) Error() string        { return "strange" }
func (strange) Is(target error) bool { return target == fs.ErrPermission }

// sealed marshals itself.
type sealed struct{ n int }

func (s sealed) Error() string                { return strconv.Itoa(s.n) }
func (s sealed) GobEncode() ([]byte, error)   { return []byte{byte(s.n)}, nil }
func (s *sealed) GobDecode(data []byte) error { s.n = int(data[0]); return nil }

type list []error

func (l list) Error() string   { return "a list" }
func (l list) Unwrap() []error { return l }

func init() {
	errcodec.Register("errOurs", errOurs)
	gob.Register(&coded{})
	gob.Register(hidden{})
	gob.Register(sealed{})
}

func through(t *testing.T, err error) error {
	t.Helper()
	b, ok := errcodec.Append([]byte("before"), err)
	require.True(t, ok)
	require.Equal(t, "before", string(b[:6]))
	back, failed := errcodec.Decode(b[6:])
	require.NoError(t, failed)
	return back
}

func TestSentinels(t *testing.T) {
	for _, err := range []error{io.EOF, fs.ErrNotExist, os.ErrDeadlineExceeded, context.Canceled, context.DeadlineExceeded, errOurs} {
		require.True(t, err == through(t, err), "the same variable")
		wrapped := through(t, fmt.Errorf("reading: %w", fmt.Errorf("again: %w", err)))
		require.ErrorIs(t, wrapped, err)
		require.Equal(t, "reading: again: "+err.Error(), wrapped.Error())
		require.NotErrorIs(t, wrapped, io.ErrNoProgress)
	}
	both := through(t, errors.Join(io.EOF, errors.New("some"), fmt.Errorf("%w and %w", errOurs, syscall.EPIPE)))
	for _, err := range []error{io.EOF, errOurs, syscall.EPIPE} {
		require.ErrorIs(t, both, err)
	}
}

func TestTypesOfTheStandardLibrary(t *testing.T) {
	_, err := os.Open("/no/such/file")
	back := through(t, fmt.Errorf("settings: %w", err))
	require.ErrorIs(t, back, fs.ErrNotExist)
	require.ErrorIs(t, back, syscall.ENOENT)
	var path *fs.PathError
	require.ErrorAs(t, back, &path)
	require.Equal(t, err, path)

	err = os.Rename("/no/such/file", "/no/other")
	var link *os.LinkError
	require.ErrorAs(t, through(t, err), &link)
	require.Equal(t, err, link)

	_, err = strconv.Atoi("99999999999999999999")
	var number *strconv.NumError
	back = through(t, err)
	require.ErrorAs(t, back, &number)
	require.ErrorIs(t, back, strconv.ErrRange)

	var errno syscall.Errno
	require.ErrorAs(t, through(t, os.NewSyscallError("mmap", syscall.ENOMEM)), &errno)
	require.Equal(t, syscall.ENOMEM, errno)
}

func TestTypesOfTheProgram(t *testing.T) {
	back := through(t, fmt.Errorf("job: %w", &coded{7, &fs.PathError{Op: "stat", Path: "x", Err: fmt.Errorf("at last: %w", errOurs)}}))
	var c *coded
	require.ErrorAs(t, back, &c)
	require.Equal(t, 7, c.Code)
	require.ErrorIs(t, back, errOurs)
	var path *fs.PathError
	require.ErrorAs(t, back, &path)
	require.Equal(t, "job: code 7: stat x: at last: one of ours", back.Error())

	back = through(t, hidden{8, io.EOF})
	var h hidden
	require.ErrorAs(t, back, &h)
	require.Equal(t, 8, h.Code)
	require.ErrorIs(t, back, io.EOF)
	require.Equal(t, "code 8: EOF", back.Error())

	require.ErrorIs(t, through(t, strange{}), fs.ErrPermission)
	require.NotErrorIs(t, through(t, strange{}), fs.ErrExist)
	var s sealed
	require.ErrorAs(t, through(t, fmt.Errorf("%w", sealed{9})), &s)
	require.Equal(t, 9, s.n)
	require.ErrorIs(t, through(t, list{errors.New("first"), io.EOF}), io.EOF)
	require.ErrorIs(t, through(t, &coded{1, list{io.EOF, errOurs}}), errOurs)
}

// endless wraps another of its kind.
type endless struct{ left int }

func (e endless) Error() string { return "endless" }
func (e endless) Unwrap() error {
	if e.left == 0 {
		return io.EOF
	}
	return endless{e.left - 1}
}

func TestNothingButText(t *testing.T) {
	for _, err := range []error{errors.New("plain"), fmt.Errorf("more %w", errors.New("plain")), endless{1 << 40}, errors.Join(list(nil))} {
		_, ok := errcodec.Append(nil, err)
		require.False(t, ok, err.Error())
	}
	wide := list{io.EOF}
	for range 100_000 {
		wide = append(wide, errors.New(strings.Repeat("x", 10)))
	}
	require.ErrorIs(t, through(t, wide), io.EOF)
}

func TestRegisterPanics(t *testing.T) {
	require.Panics(t, func() { errcodec.Register("errOurs", errors.New("another")) })
	require.Panics(t, func() { errcodec.Register("a second name", errOurs) })
	require.Panics(t, func() { errcodec.Register("nothing", nil) })
	require.Panics(t, func() { errcodec.Register("a list", list{}) })
}

func FuzzDecode(f *testing.F) {
	_, err := os.Open("/no/such/file")
	for _, err := range []error{io.EOF, fmt.Errorf("x: %w", err), &coded{7, io.EOF}, hidden{8, io.EOF}, strange{}} {
		b, _ := errcodec.Append(nil, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		err, failed := errcodec.Decode(data)
		if failed != nil {
			return
		}
		_ = errors.Is(err, io.EOF)
		var c *coded
		_ = errors.As(err, &c)
	})
}
