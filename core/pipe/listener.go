package pipe

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Listeners and clients in the manner of Python's multiprocessing.connection: what its Client connects to, and what connects to its Listener.
//
// The challenge: one end sends "#CHALLENGE#" and a message; the other answers with the HMAC of that message under the key; the first says "#WELCOME#" or
// "#FAILURE#". Then they change places. The message of Python 3.12 and later begins with the name of a digest, "{sha256}", and so does the answer; an older end knows
// nothing of that, sends 20 random bytes, and answers any message with 16 bytes, the HMAC by MD5.

// ErrAuthentication says that the other end does not know the key, does not believe that this one does, or takes longer than 20 s over it.
var ErrAuthentication = errors.New("pipe: authentication failed")

const (
	challengeText = "#CHALLENGE#"
	welcomeText   = "#WELCOME#"
	failureText   = "#FAILURE#"

	challengeTime   = 20 * time.Second
	challengeMost   = 256 // no message of it is longer
	challengeRandom = 40
	oldMessage      = 20
)

var digests = map[string]func() hash.Hash{
	"md5":      md5.New,
	"sha256":   sha256.New,
	"sha384":   sha512.New384,
	"sha3_256": func() hash.Hash { return sha3.New256() },
	"sha3_384": func() hash.Hash { return sha3.New384() },
}

func sum(digest string, key, message []byte) []byte {
	h := hmac.New(digests[digest], key)
	h.Write(message)
	return h.Sum(nil)
}

// split finds the digest that a message names, "" if none, and the rest.
func split(message []byte) (digest string, rest []byte, err error) {
	if len(message) == 0 || message[0] != '{' {
		return "", message, nil
	}
	// No name of a digest is longer. What follows the first brace is random and may have others.
	name, _, found := strings.Cut(string(message[1:min(len(message), 20)]), "}")
	if _, known := digests[name]; !found || !known {
		return "", nil, fmt.Errorf("%w: unsupported digest %q", ErrAuthentication, name)
	}
	return name, message[len(name)+2:], nil
}

// role begins the random part of a challenge: whether a listener or a client asks. So none of them answers what one of its own kind has asked: who does not know the key
// could else have a client answer, over a second connection, what it asks over the first. Ends that are not of polyproc send random bytes, and take these for such.
func role(listens bool) string {
	if listens {
		return "Lpolyproc"
	}
	return "Cpolyproc"
}

// deliver has the other end prove that it knows the key.
func deliver(ctx context.Context, s *Stream, key []byte, listens bool) error {
	begin := "{sha256}" + role(listens)
	message := append([]byte(begin), make([]byte, len("{sha256}")+challengeRandom-len(begin))...)
	_, _ = rand.Read(message[len(begin):]) // it never fails
	if err := s.Send(ctx, append([]byte(challengeText), message...)); err != nil {
		return err
	}
	answer, err := s.Recv(ctx)
	if err != nil {
		return err
	}
	digest, theirs := "md5", answer
	if len(answer) != md5.Size {
		if digest, theirs, err = split(answer); err == nil && digest == "" {
			err = fmt.Errorf("%w: an answer of %d bytes", ErrAuthentication, len(answer))
		}
	}
	if err == nil && !hmac.Equal(theirs, sum(digest, key, message)) {
		err = fmt.Errorf("%w: the other end does not know the key", ErrAuthentication)
	}
	if err != nil {
		_ = s.Send(ctx, []byte(failureText))
		return err
	}
	return s.Send(ctx, []byte(welcomeText))
}

// answer proves to the other end that the key is known here, once the other end has asked.
func answer(ctx context.Context, s *Stream, key, asked []byte, listens bool) error {
	message, found := bytes.CutPrefix(asked, []byte(challengeText))
	if !found {
		return fmt.Errorf("%w: the other end does not begin with a challenge", ErrAuthentication)
	}
	var digest string
	var err error
	if len(message) != oldMessage { // by chance 20 random bytes may begin with a brace
		var random []byte
		if digest, random, err = split(message); err == nil && digest == "" {
			err = fmt.Errorf("%w: a challenge of %d bytes", ErrAuthentication, len(message))
		}
		if err == nil && bytes.HasPrefix(random, []byte(role(listens))) {
			err = fmt.Errorf("%w: the other end sends a challenge of this end's own kind", ErrAuthentication)
		}
	}
	if err != nil {
		return err
	}
	response := sum("md5", key, message)
	if digest != "" {
		response = append([]byte("{"+digest+"}"), sum(digest, key, message)...)
	}
	if err = s.Send(ctx, response); err != nil {
		return err
	}
	verdict, err := s.Recv(ctx)
	if err == nil && string(verdict) != welcomeText {
		err = fmt.Errorf("%w: the other end does not believe the key", ErrAuthentication)
	}
	return err
}

// agree runs the challenge, both ways, and closes the stream if it fails. A listener calls proved when the other end has proved that it
// knows the key.
func agree(ctx context.Context, s *Stream, key []byte, listens bool, proved func()) (err error) {
	if key == nil {
		return nil
	}
	s.SetLimit(challengeMost)
	defer func() {
		s.SetLimit(math.MaxInt)
		if err != nil {
			_ = s.Close()
		}
	}()
	var asked []byte
	if !listens { // the listener may be busy with others: that is not limited
		if asked, err = s.Recv(ctx); err != nil {
			return err
		}
	}
	limited, cancel := context.WithTimeout(ctx, challengeTime)
	defer cancel()
	if listens {
		if err = deliver(limited, s, key, listens); err == nil {
			proved()
			if asked, err = s.Recv(limited); err == nil {
				err = answer(limited, s, key, asked, listens)
			}
		}
	} else if err = answer(limited, s, key, asked, listens); err == nil {
		err = deliver(limited, s, key, listens)
	}
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = fmt.Errorf("%w: not within %v", ErrAuthentication, challengeTime)
	}
	return err
}

// Listener takes connections of [Dial], and of multiprocessing.connection.Client.
type Listener struct {
	listener net.Listener
	key      []byte
	gate     chan struct{}
	done     chan outcome // of challenges
	closed   chan struct{}

	mu       sync.Mutex
	incoming []*incoming // oldest first
}

// incoming is a connection from its arrival until its challenge has failed, or Accept has returned it.
type incoming struct {
	stream  *Stream
	begun   time.Time
	proved  bool // the other end knows the key
	dropped bool
}

type outcome struct {
	s   *Stream
	err error
}

const (
	incomingMost  = 64
	incomingLeast = time.Second // what a silent one has, when others wait
)

// Listen listens at an address: network is "unix" (a path, or @name: abstract, which Python writes as \0name), "tcp", "tcp4" or "tcp6". Who connects must know the key; nil: nobody is asked.
// The file of a path is removed when the listener is closed.
func Listen(network, address string, key []byte) (*Listener, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	return &Listener{listener: l, key: bytes.Clone(key), gate: make(chan struct{}, 1), done: make(chan outcome), closed: make(chan struct{})}, nil
}

// Addr returns where the listener is.
func (l *Listener) Addr() net.Addr { return l.listener.Addr() }

// Close takes no more connections, and closes those that Accept has not returned; Accept returns [net.ErrClosed].
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	for _, in := range l.incoming {
		_ = in.stream.Close()
	}
	return l.listener.Close()
}

// Accept waits for a connection, and for its proof that it knows the key: up to 20 s. Those whose other ends are slow or silent do not
// keep out the others, as the challenges go on at the same time, also after Accept has returned. When there are 64 of them, and more
// want to connect, those that have been silent longest, for a second at least, are closed. Errors: [ErrAuthentication], [io.EOF] and
// others of one connection, after which it can be called again; the context's; [net.ErrClosed].
func (l *Listener) Accept(ctx context.Context) (*Stream, error) {
	if l.key == nil {
		c, err := l.connection(ctx)
		if err != nil {
			return nil, err
		}
		return NewStream(c), nil
	}
	type arrival struct {
		c   net.Conn
		err error
	}
	arrivals := make(chan arrival, 1)
	waiting, cancel := context.WithCancel(ctx)
	taking := false
	defer func() {
		cancel()
		if taking {
			if a := <-arrivals; a.err == nil {
				l.challenge(a.c)
			}
		}
	}()
	for {
		var later <-chan time.Time
		if !taking {
			if wait := l.full(); wait > 0 {
				later = time.After(wait)
			} else {
				taking = true
				go func() {
					c, err := l.connection(waiting)
					arrivals <- arrival{c, err}
				}()
			}
		}
		select {
		case o := <-l.done:
			return o.s, o.err
		case a := <-arrivals:
			taking = false
			if a.err != nil {
				return nil, a.err
			}
			l.challenge(a.c)
		case <-later:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-l.closed:
			return nil, fmt.Errorf("pipe: %w", net.ErrClosed)
		}
	}
}

// silent is the oldest whose other end has not proved that it knows the key.
func (l *Listener) silent() *incoming {
	for _, in := range l.incoming {
		if !in.proved {
			return in
		}
	}
	return nil
}

// full returns how long to wait before another connection is taken.
func (l *Listener) full() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.incoming) < incomingMost {
		return 0
	}
	if in := l.silent(); in != nil {
		return incomingLeast - time.Since(in.begun)
	}
	return incomingLeast
}

// challenge begins the challenge of a connection. Its outcome goes to done.
func (l *Listener) challenge(c net.Conn) {
	in := &incoming{stream: NewStream(c), begun: time.Now()}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.incoming) >= incomingMost {
		if oldest := l.silent(); oldest != nil {
			oldest.dropped = true
			_ = oldest.stream.Close()
			l.remove(oldest)
		}
	}
	l.incoming = append(l.incoming, in)
	go func() {
		err := agree(context.Background(), in.stream, l.key, true, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			in.proved = true
		})
		o := outcome{in.stream, err}
		l.mu.Lock()
		if err != nil {
			o.s = nil
			l.remove(in)
		}
		dropped := in.dropped
		l.mu.Unlock()
		if dropped {
			return
		}
		select {
		case l.done <- o:
			l.mu.Lock()
			defer l.mu.Unlock()
			l.remove(in)
		case <-l.closed:
			_ = in.stream.Close()
		}
	}()
}

func (l *Listener) remove(in *incoming) {
	l.incoming = slices.DeleteFunc(l.incoming, func(other *incoming) bool { return other == in })
}

func (l *Listener) connection(ctx context.Context) (c net.Conn, err error) {
	deadline := func(time.Time) error { return nil }
	if d, ok := l.listener.(interface{ SetDeadline(time.Time) error }); ok {
		deadline = d.SetDeadline
	}
	err = during(ctx, l.gate, deadline, func() (bool, error) {
		c, err = l.listener.Accept()
		return false, err
	}, l.listener.Close)
	return c, err
}

// Dial connects to a listener: of [Listen], or multiprocessing.connection.Listener. network, address and key as for Listen. Errors: [ErrAuthentication], the context's, of the
// connection.
func Dial(ctx context.Context, network, address string, key []byte) (*Stream, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	s := NewStream(c)
	if err = agree(ctx, s, bytes.Clone(key), false, nil); err != nil {
		return nil, err
	}
	return s, nil
}
