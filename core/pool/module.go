package pool

import "fmt"

// Module is a program or shared library that C functions lie in. Path "" is the program itself.
type Module struct {
	Path    string
	BuildID []byte // at most 32 bytes; empty: it has none
}

// NumberIn returns what C workers know the function by that lies offset bytes into the module with that place in the board.
func NumberIn(module int, offset uint64) uint64 { return uint64(module+1)<<48 | offset }

// FunctionNumber makes a module known to the workers and returns what they know its function by.
func (p *Pool) FunctionNumber(m Module, offset uint64) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.board == nil {
		return 0, ErrClosed
	}
	i, err := p.moduleNumber(m)
	if err != nil {
		return 0, err
	}
	if offset >= 1<<48 {
		return 0, fmt.Errorf("%w: a function %d bytes into %q", ErrInvalid, offset, m.Path)
	}
	return NumberIn(i, offset), nil
}

func (p *Pool) moduleNumber(m Module) (int, error) {
	if i, ok := p.modules[m.Path]; ok {
		return i, nil
	}
	i := len(p.modules)
	if i == maxModules || len(m.Path) >= len(p.board.modules[0].path) || len(m.BuildID) > 32 {
		return 0, fmt.Errorf("%w: module %d, %q: at most %d with paths shorter than %d bytes", ErrTooBig, i, m.Path, maxModules, len(p.board.modules[0].path))
	}
	// Workers read it when they get the first task with its number: after the task ring's tail store.
	place := &p.board.modules[i]
	copy(place.path[:], m.Path)
	place.buildIDSize = uint32(copy(place.buildID[:], m.BuildID))
	p.modules[m.Path] = i
	return i, nil
}
