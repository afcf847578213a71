package subset

import "fmt"

// Run prints what the functions compute; main.c does the same in C.
func Run() (out string) {
	p := func(name string, values ...uint64) { out += fmt.Sprintln(name, fmt.Sprint(values)) }
	b := func(v bool) uint64 {
		if v {
			return 1
		}
		return 0
	}
	numbers := []uint64{0, 1, 2, 3, 7, 8, 1000, 1001, 0x7fffffff, 0x80000000, 0xffffffff, 0x123456789abcdef0, ^uint64(0)}
	for _, x := range numbers {
		for _, y := range numbers {
			for _, z := range numbers {
				p("mix", mix(x, y, uint32(z)))
			}
			p("two", uint64(grade(uint32(x), uint32(y))), b(after(uint32(x), uint32(y))), uint64(wordOf(uint32(x), uint32(y))))
		}
		p("one", uint64(kind(uint32(x))), b(lowest(int32(uint32(x)))), uint64(word(x).tag()), uint64(word(x).count()), uint64(word(x).withNext()))
	}
	_ = word(0).onlyGo()
	var s slot
	v := &view{slot: &s}
	var sum uint64
	p("fill", b(v.fill(0xfffffffc, &sum)), sum, v.total(), uint64(v.walks))
	p("bump", uint64(v.bump(5)), uint64(v.bump(6)), uint64(v.last))
	p("at", uint64(*v.at(7)), b(v.at(8) == nil))
	c := v.copied(9)
	p("copied", uint64(c.walks), uint64(c.last), b(c.slot == v.slot))
	p("search", uint64(search(35)), uint64(search(37)))
	return out
}
