package cgen

import (
	"strings"
	"unicode"
)

// snake returns a Go name as a C name: commitGet is commit_get, CAS64 is cas64.
func snake(name string) string {
	var b strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		if unicode.IsUpper(r) && i > 0 {
			before, last := runes[i-1], i+1 == len(runes)
			if unicode.IsLower(before) || unicode.IsDigit(before) || !last && unicode.IsLower(runes[i+1]) {
				b.WriteByte('_')
			}
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// shout returns a Go name as the name of a C constant: chunkHead is CHUNK_HEAD.
func shout(name string) string { return strings.ToUpper(snake(name)) }

// reserved are names that mean something else in C.
var reserved = map[string]bool{}

func init() {
	for _, word := range strings.Fields(`auto break case char const continue default do double else enum extern float for goto
		if inline int long register restrict return short signed sizeof static struct switch typedef union unsigned void volatile
		while asm typeof bool true false errno stdin stdout stderr linux unix NULL`) {
		reserved[word] = true
	}
}
