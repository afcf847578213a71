package cgen

import (
	"go/ast"
	"go/token"
	"regexp"
	"strings"
)

const width = 100

// text is what a comment says, without directives, in one line per paragraph or indented line. Go names are C names in it.
func (g *generator) text(group *ast.CommentGroup) string {
	if group == nil {
		return ""
	}
	if _, ok := directive("go", group); ok { // a comment for readers of Go
		return ""
	}
	var lines []string
	for _, c := range group.List {
		line, ok := strings.CutPrefix(c.Text, "//")
		if !ok {
			g.refuse(c, "a comment of the other form than //")
			continue
		}
		if strings.HasPrefix(line, "c:") || strings.HasPrefix(line, "nolint") || strings.HasPrefix(line, "go:") {
			continue
		}
		if strings.Contains(line, "*/") {
			g.refuse(c, "a comment that holds */")
		}
		lines = append(lines, strings.TrimPrefix(line, " "))
	}
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	var b strings.Builder
	for i, line := range lines {
		indented := strings.HasPrefix(line, "\t") || strings.HasPrefix(line, " ")
		switch {
		case i == 0:
		case indented || line == "" || lines[i-1] == "" || strings.HasPrefix(lines[i-1], "\t") || strings.HasPrefix(lines[i-1], " "):
			b.WriteByte('\n')
		default:
			b.WriteByte(' ')
		}
		b.WriteString(line)
	}
	return g.renamed(links.ReplaceAllString(b.String(), "$1"))
}

// links of Go's documentation, which C does not have.
var links = regexp.MustCompile(`\[([A-Za-z_.]+)\]`)

// renamed replaces the Go names of this package's functions, types, constants and fields, as far as they are not plain words.
func (g *generator) renamed(text string) string {
	words := map[string]string{}
	for o, name := range g.names {
		words[o.Name()] = name
	}
	for o := range g.bodies {
		if fn := g.bodies[o]; fn != nil {
			words[o.Name()] = snake(o.Name())
		}
	}
	isName := func(b byte) bool {
		return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '_'
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		k := i
		for k < len(text) && isName(text[k]) {
			k++
		}
		if k == i {
			b.WriteByte(text[i])
			i++
			continue
		}
		word := text[i:k]
		switch {
		case word == "nil":
			b.WriteString("NULL")
		case snake(word) == word || strings.ToUpper(word) == word || strings.ToUpper(word[:1]) == word[:1]: // a plain word
			b.WriteString(word)
		case words[word] != "":
			b.WriteString(words[word])
		default:
			b.WriteString(snake(word))
		}
		i = k
	}
	return b.String()
}

// doc writes a comment on lines of its own.
func (g *generator) doc(group *ast.CommentGroup, in string) {
	if group == nil {
		return
	}
	for i, c := range g.comments {
		if c == group {
			g.comments = append(g.comments[:i:i], g.comments[i+1:]...)
			break
		}
	}
	if text := g.text(group); text != "" {
		g.printf("%s", block(text, in))
	}
}

// block is a comment of one or more lines.
func block(text, in string) string {
	indent := 8 * len(in)
	var lines []string
	for _, paragraph := range strings.Split(text, "\n") {
		if strings.HasPrefix(paragraph, "\t") || paragraph == "" {
			lines = append(lines, paragraph)
			continue
		}
		line := ""
		for _, word := range strings.Fields(paragraph) {
			if line != "" && indent+3+len(line)+1+len(word) > width {
				lines = append(lines, line)
				line = ""
			}
			if line != "" {
				line += " "
			}
			line += word
		}
		lines = append(lines, line)
	}
	if len(lines) == 1 && indent+6+len(lines[0]) <= width {
		return in + "/* " + lines[0] + " */\n"
	}
	var b strings.Builder
	for i, line := range lines {
		lead := " * "
		if i == 0 {
			lead = "/* "
		}
		b.WriteString(strings.TrimRight(in+lead+line, " \t"))
		if i+1 == len(lines) {
			b.WriteString(" */")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// floating writes the comments that stand alone before a declaration, whose doc comment is doc; nil: before the end.
func (g *generator) floating(doc *ast.CommentGroup) {
	for len(g.comments) > 0 {
		c := g.comments[0]
		if doc != nil && c.Pos() >= doc.Pos() {
			return
		}
		if doc == nil {
			return
		}
		g.comments = g.comments[1:]
		if text := g.text(c); text != "" {
			g.printf("%s\n", block(text, ""))
		}
	}
}

// skip drops the comments before a position: they were written, or belong to what C does not have.
func (g *generator) skip(until token.Pos) {
	for len(g.comments) > 0 && g.comments[0].Pos() < until {
		g.comments = g.comments[1:]
	}
	if len(g.comments) > 0 && g.line(g.comments[0].Pos()) == g.line(until) && g.comments[0].Pos() > until && g.fn == nil {
		g.comments = g.comments[1:]
	}
}

// nextComment is the next comment, if it stands before a position.
func (g *generator) nextComment(until token.Pos) *ast.CommentGroup {
	if len(g.comments) > 0 && g.comments[0].Pos() < until {
		return g.comments[0]
	}
	return nil
}

// before writes the comments before a statement.
func (g *generator) before(until token.Pos, depth int) {
	for c := g.nextComment(until); c != nil; c = g.nextComment(until) {
		g.comments = g.comments[1:]
		if text := g.text(c); text != "" {
			g.printf("%s", block(text, tabs(depth)))
		}
	}
}

// trailing ends the line, with the comment that stands on it in Go.
func (g *generator) trailing(end token.Pos) {
	if len(g.comments) > 0 && g.comments[0].Pos() > end && g.line(g.comments[0].Pos()) == g.line(end) {
		text := g.text(g.comments[0])
		g.comments = g.comments[1:]
		if text != "" {
			g.printf(" /* %s */", text)
		}
	}
	g.printf("\n")
}

// tidy ends what the emission left: lines that are too long, empty lines at the end of blocks.
func tidy(text string) string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimRight(line, " \t")
		if line == "" && len(out) > 0 && out[len(out)-1] == "" {
			continue
		}
		out = append(out, wrap(line, "")...)
	}
	return strings.TrimRight(strings.Join(out, "\n"), "\n") + "\n"
}

// columns counts a tab as eight.
func columns(line string) int {
	tabs := len(line) - len(strings.TrimLeft(line, "\t"))
	return 7*tabs + len(line)
}

// wrap breaks a line of code after a comma or before an operator, where the fewest parentheses are open. A comment at its end goes before it.
// next is how the lines after it are indented, if that is known.
func wrap(line, next string) []string {
	if columns(line) <= width || strings.HasPrefix(strings.TrimLeft(line, "\t"), "/*") || strings.HasPrefix(line, " *") || strings.HasPrefix(line, "_Static_assert") {
		return []string{line}
	}
	in := line[:len(line)-len(strings.TrimLeft(line, "\t"))]
	if i := strings.LastIndex(line, " /* "); i > 0 && strings.HasSuffix(line, "*/") && !strings.HasPrefix(line, "#") && !strings.Contains(line[:i], "} else") {
		comment := strings.TrimSuffix(line[i+4:], " */")
		return append(strings.Split(strings.TrimSuffix(block(comment, in), "\n"), "\n"), wrap(line[:i], "")...)
	}
	if strings.HasPrefix(line, "#") {
		return []string{line}
	}
	best, least, depth, quoted := -1, 1<<30, 0, false
	for i := range line {
		switch c := line[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '(' || c == '{' || c == '[':
			depth++
		case c == ')' || c == '}' || c == ']':
			depth--
		}
		if quoted || columns(line[:i+1]) > width {
			continue
		}
		at, cost := -1, depth*10
		if strings.HasPrefix(line[i:], ", ") {
			at = i + 2
		} else if strings.HasPrefix(line[i:], " && ") || strings.HasPrefix(line[i:], " || ") {
			at = i + 1
		} else if strings.HasPrefix(line[i:], " = ") || strings.HasPrefix(line[i:], " | ") {
			at, cost = i+1, cost+5
			if line[i+1] == '=' && depth > 0 {
				at = -1
			}
		} else if strings.HasPrefix(line[i:], "; ") {
			at = i + 2
		} else if strings.HasPrefix(line[i:], " - ") || strings.HasPrefix(line[i:], " + ") {
			at, cost = i+1, cost+5
		}
		if at > 0 && at > len(in)+20 && cost <= least {
			best, least = at, cost
		}
	}
	if best < 0 {
		return []string{line}
	}
	if next == "" {
		next = in + "\t\t"
	}
	return append([]string{strings.TrimRight(line[:best], " ")}, wrap(next+line[best:], next)...)
}
