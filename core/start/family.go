package start

import (
	"os"

	"github.com/polyproc/polyproc/shm"
)

// InheritFamily has the child be of this process's family, so that queues and other objects in shared memory can be sent to it: it adds two
// descriptors to Files and one variable to Env. For programs that os/exec starts there is [InheritFamily]. A child that is a Go program finds the family by [shm.Family], one in C or Python by
// libpolyproc. Errors: those of [shm.Inherit].
func (s *Spec) InheritFamily() error {
	files, env, err := shm.Inherit()
	if err != nil {
		return err
	}
	if s.Env == nil {
		s.Env = os.Environ()
	}
	s.Env = append(s.Env[:len(s.Env):len(s.Env)], env)
	s.Files = append(s.Files[:len(s.Files):len(s.Files)], files...)
	return nil
}
