package cgen

import (
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"slices"
	"strings"
)

// memPath is the package whose functions C has by hand, see capi/front/mem.h.
const memPath = module + "shm/mem"

const module = "github.com/polyproc/polyproc/"

// Config says what to write.
type Config struct {
	Prefix  string   // of names in C: pp__queue
	Files   []string // of the package, in the order in which C shall have them
	After   []string // files of the package that C has already, by another run
	Guard   string   // the macro against a second inclusion
	Include []string // headers
}

// An Error is a construct outside the subset.
type Error struct {
	Pos  token.Position
	Text string
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s", e.Pos, e.Text) }

// generator writes one file.
type generator struct {
	*Package
	config   Config
	b        strings.Builder
	problems []error
	names    map[types.Object]string
	taken    map[string]types.Object
	methods  map[*types.TypeName]string // the prefix of the methods of a type
	shared   map[*types.TypeName]bool
	extern   map[types.Object]bool
	fieldC   map[types.Object]string // what //c:type says
	bodies   map[types.Object]*ast.FuncDecl
	pure     map[types.Object]bool
	writes   map[types.Object]bool // parameters through which a function writes
	defined  map[types.Object]bool // so far, or before this file
	prefixed map[types.Object]bool // has a prototype
	comments []*ast.CommentGroup   // of the file at hand, not yet written
	fn       *function
	asserts  []string // what C shall find equal to what Go has
}

// Generate returns the C of files of a package. The errors are all there are, each an [Error].
func Generate(p *Package, config Config) ([]byte, error) {
	g := &generator{
		Package: p, config: config,
		names: map[types.Object]string{}, taken: map[string]types.Object{}, methods: map[*types.TypeName]string{},
		shared: map[*types.TypeName]bool{}, extern: map[types.Object]bool{}, fieldC: map[types.Object]string{},
		bodies: map[types.Object]*ast.FuncDecl{}, pure: map[types.Object]bool{}, defined: map[types.Object]bool{},
		prefixed: map[types.Object]bool{},
	}
	for name, f := range p.files {
		ours := slices.Contains(config.Files, name) || slices.Contains(config.After, name)
		g.collect(f, ours, slices.Contains(config.After, name))
	}
	for _, name := range config.Files {
		if p.files[name] == nil {
			return nil, fmt.Errorf("cgen: the package has no file %s", name)
		}
	}
	g.purity()
	g.constness()
	origin := make([]string, len(config.Files))
	for i, name := range config.Files {
		origin[i] = strings.TrimPrefix(p.types.Path(), module) + "/" + name
	}
	g.printf("/* Code generated from %s by cgen (core/internal/cgen). DO NOT EDIT. */\n", strings.Join(origin, ", "))
	g.printf("#ifndef %s\n#define %s\n\n", config.Guard, config.Guard)
	for _, h := range config.Include {
		g.printf("#include \"%s\"\n", h)
	}
	g.printf("\n")
	g.prototypes()
	for _, name := range config.Files {
		g.file(p.files[name])
	}
	if len(g.asserts) > 0 {
		g.printf("/* ---- the same in Go */\n\n%s\n", strings.Join(g.asserts, ""))
	}
	g.printf("#endif\n")
	if len(g.problems) > 0 {
		return nil, errors.Join(g.problems...)
	}
	return []byte(tidy(g.b.String())), nil
}

func (g *generator) printf(format string, args ...any) { fmt.Fprintf(&g.b, format, args...) }

func (g *generator) refuse(at ast.Node, format string, args ...any) {
	g.problems = append(g.problems, &Error{g.fset.Position(at.Pos()), fmt.Sprintf(format, args...)})
}

// directive returns what a comment group says under //c:name.
func directive(name string, groups ...*ast.CommentGroup) (string, bool) {
	for _, group := range groups {
		if group == nil {
			continue
		}
		for _, c := range group.List {
			if c.Text == "//c:"+name {
				return "", true
			}
			if rest, ok := strings.CutPrefix(c.Text, "//c:"+name+" "); ok {
				return strings.TrimSpace(rest), true
			}
		}
	}
	return "", false
}

// called names an object, by a directive or by the rule.
func (g *generator) called(o types.Object, rule string, groups ...*ast.CommentGroup) {
	if o == nil {
		return
	}
	name := rule
	if n, ok := directive("name", groups...); ok {
		name = n
	}
	if n, ok := directive("extern", groups...); ok {
		name = n
		g.extern[o] = true
		if _, ok := o.(*types.Func); !ok {
			g.defined[o] = true
		}
	}
	g.names[o] = name
}

// collect names what a file declares. Files that are not ours give extern things only.
func (g *generator) collect(f *ast.File, ours, after bool) {
	prefix := g.config.Prefix + "_"
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					o := g.info.Defs[s.Name].(*types.TypeName)
					doc := []*ast.CommentGroup{s.Doc, s.Comment}
					if len(d.Specs) == 1 {
						doc = append(doc, d.Doc)
					}
					_, external := directive("extern", doc...)
					if !ours && !external {
						continue
					}
					g.called(o, prefix+snake(o.Name()), doc...)
					g.defined[o] = g.defined[o] || after
					g.methods[o] = prefix + snake(o.Name()) + "_"
					if m, ok := directive("methods", doc...); ok {
						g.methods[o] = m
					}
					_, g.shared[o] = directive("shared", doc...)
					if st, ok := s.Type.(*ast.StructType); ok {
						for _, field := range st.Fields.List {
							if c, ok := directive("type", field.Doc, field.Comment); ok {
								for _, n := range field.Names {
									g.fieldC[g.info.Defs[n]] = c
								}
							}
						}
					}
				case *ast.ValueSpec:
					for _, n := range s.Names {
						if _, skip := directive("go", s.Comment, s.Doc); skip {
							continue
						}
						if o, ok := g.info.Defs[n].(*types.Const); ok && ours {
							if c, ok := directive("type", s.Doc, s.Comment); ok {
								g.fieldC[o] = c
							}
							g.called(o, strings.ToUpper(prefix)+shout(n.Name), s.Doc, s.Comment)
							g.defined[o] = g.defined[o] || after
						}
					}
				}
			}
		case *ast.FuncDecl:
			o := g.info.Defs[d.Name]
			_, external := directive("extern", d.Doc)
			_, skip := directive("go", d.Doc)
			if skip || !ours && !external {
				continue
			}
			g.bodies[o] = d
			g.defined[o] = after
		}
	}
	// Methods are named when all types are: in function.
}

// function returns the C name of a function of this package, "" if it is none of ours.
func (g *generator) function(o *types.Func) string {
	if name, ok := g.names[o]; ok {
		return name
	}
	d := g.bodies[o]
	if d == nil {
		return ""
	}
	rule := g.config.Prefix + "_" + snake(o.Name())
	if recv := o.Signature().Recv(); recv != nil {
		if named := namedOf(recv.Type()); named != nil {
			rule = g.methods[named.Obj()] + snake(o.Name())
		}
	}
	g.called(o, rule, d.Doc)
	name := g.names[o]
	if other := g.taken[name]; other != nil && other != o {
		g.refuse(d.Name, "%s is %s in C, as is another function", o.Name(), name)
	}
	g.taken[name] = o
	return name
}

// namedOf is the named type of T or *T.
func namedOf(t types.Type) *types.Named {
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem()
	}
	n, _ := t.(*types.Named)
	return n
}

// purity finds the functions that read and write no memory: they take integers, and call only such.
func (g *generator) purity() {
	integers := func(t types.Type) bool {
		b, ok := t.Underlying().(*types.Basic)
		return ok && b.Kind() != types.UnsafePointer && b.Info()&(types.IsInteger|types.IsBoolean) != 0
	}
	for o, d := range g.bodies {
		s := o.(*types.Func).Signature()
		well := d.Body != nil && !g.externFunc(o) && (s.Recv() == nil || integers(s.Recv().Type()))
		for v := range s.Params().Variables() {
			well = well && integers(v.Type())
		}
		g.pure[o] = well
	}
	for changed := true; changed; {
		changed = false
		for o, d := range g.bodies {
			if !g.pure[o] {
				continue
			}
			ast.Inspect(d.Body, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok && !g.info.Types[call.Fun].IsType() && !g.pure[g.callee(call)] {
					g.pure[o], changed = false, true
					return false
				}
				return true
			})
		}
	}
}

func (g *generator) externFunc(o types.Object) bool {
	_, ok := directive("extern", g.bodies[o].Doc)
	return ok
}

// callee is the function that a call calls, nil if that is not known.
func (g *generator) callee(call *ast.CallExpr) types.Object {
	switch f := ast.Unparen(call.Fun).(type) {
	case *ast.Ident:
		return g.info.Uses[f]
	case *ast.SelectorExpr:
		return g.info.Uses[f.Sel]
	}
	return nil
}

// prototypes of functions that are called before they are defined, and of those that C has by hand. Types that they name must be there: so those
// of this file's own types follow the types, see file.
func (g *generator) prototypes() {
	needed := map[types.Object]bool{}
	seen := map[types.Object]bool{}
	for _, name := range g.config.Files {
		for _, decl := range g.files[name].Decls {
			d, ok := decl.(*ast.FuncDecl)
			if !ok || d.Body == nil || g.bodies[g.info.Defs[d.Name]] == nil {
				continue
			}
			if _, external := directive("extern", d.Doc); external {
				continue
			}
			seen[g.info.Defs[d.Name]] = true
			ast.Inspect(d.Body, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					if o := g.callee(call); o != nil && g.bodies[o] != nil && !seen[o] && !g.defined[o] {
						needed[o] = true
					}
				}
				return true
			})
		}
	}
	for o := range needed {
		g.prefixed[o] = true
	}
}

// file writes the declarations of a file, with what comments stand between them.
func (g *generator) file(f *ast.File) {
	g.comments = nil
	for _, c := range f.Comments {
		if c.Pos() > f.Name.End() {
			g.comments = append(g.comments, c)
		}
	}
	for i, d := range f.Decls {
		if gen, ok := d.(*ast.GenDecl); ok && gen.Tok == token.IMPORT {
			g.skip(gen.End())
			continue
		}
		if _, ok := d.(*ast.FuncDecl); ok {
			g.flushPrototypes(f.Decls[i:])
		}
		g.floating(docOf(d))
		switch d := d.(type) {
		case *ast.GenDecl:
			g.general(d)
		case *ast.FuncDecl:
			if o := g.info.Defs[d.Name]; g.bodies[o] == nil || g.externFunc(o) {
				g.skip(d.End())
			} else {
				g.define(d)
			}
		}
	}
	g.floating(nil)
}

func docOf(d ast.Decl) *ast.CommentGroup {
	switch d := d.(type) {
	case *ast.GenDecl:
		return d.Doc
	case *ast.FuncDecl:
		return d.Doc
	}
	return nil
}

// flushPrototypes writes the prototypes that this file's functions need, before the first of them whose types are all known.
func (g *generator) flushPrototypes(rest []ast.Decl) {
	var here []types.Object
	for _, d := range rest {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if o := g.callee(call); g.prefixed[o] && g.known(o) && !slices.Contains(here, o) {
					here = append(here, o)
				}
			}
			return true
		})
	}
	if len(here) == 0 {
		return
	}
	for _, byHand := range []bool{true, false} {
		first := true
		for _, o := range here {
			if g.externFunc(o) != byHand {
				continue
			}
			if first && byHand {
				g.printf("/* Written by hand in each language. */\n")
			}
			first = false
			g.printf("%s;\n", g.head(g.bodies[o]))
			delete(g.prefixed, o)
			g.defined[o] = true
		}
		if !first {
			g.printf("\n")
		}
	}
}

// known reports whether all types of a function's signature were written.
func (g *generator) known(o types.Object) bool {
	s := o.(*types.Func).Signature()
	well := true
	look := func(t types.Type) {
		if n := namedOf(t); n != nil && n.Obj().Pkg() == g.types {
			well = well && g.defined[n.Obj()]
		}
	}
	if s.Recv() != nil {
		look(s.Recv().Type())
	}
	for v := range s.Params().Variables() {
		look(v.Type())
	}
	for v := range s.Results().Variables() {
		look(v.Type())
	}
	return well
}

// ---- constants and types

func (g *generator) general(d *ast.GenDecl) {
	switch d.Tok {
	case token.CONST:
		g.doc(d.Doc, "")
		for i, s := range d.Specs {
			s := s.(*ast.ValueSpec)
			if i > 0 && g.apart(d.Specs[i-1].End(), s) {
				g.printf("\n")
			}
			g.doc(s.Doc, "")
			for _, n := range s.Names {
				g.constant(n, s)
			}
			g.skip(s.End())
		}
		g.printf("\n")
	case token.TYPE:
		for _, s := range d.Specs {
			s := s.(*ast.TypeSpec)
			doc := s.Doc
			if len(d.Specs) == 1 {
				doc = d.Doc
			}
			g.typeDecl(s, doc)
		}
	default:
		g.refuse(d, "a package variable")
	}
	g.skip(d.End())
}

// apart reports whether an empty line, or more, stands between two things.
func (g *generator) apart(end token.Pos, next ast.Node) bool {
	from := next.Pos()
	if s, ok := next.(*ast.ValueSpec); ok && s.Doc != nil {
		from = s.Doc.Pos()
	}
	return g.line(from) > g.line(end)+1
}

func (g *generator) line(p token.Pos) int { return g.fset.Position(p).Line }

func (g *generator) constant(n *ast.Ident, s *ast.ValueSpec) {
	o := g.info.Defs[n].(*types.Const)
	if g.names[o] == "" { // for Go only
		return
	}
	value := number(o)
	if value == "" {
		g.refuse(n, "the constant %s is no integer of 64 bits", n.Name)
		return
	}
	if g.extern[o] {
		g.asserts = append(g.asserts, fmt.Sprintf("_Static_assert(%s == %s, \"%s\");\n", g.names[o], strings.TrimSuffix(value, "u"), g.names[o]))
		return
	}
	if len(s.Values) == 1 {
		value = notation(s.Values[0], value, g.fieldC[o])
	}
	if strings.HasPrefix(value, "-") {
		value = "(" + value + ")"
	}
	line := fmt.Sprintf("#define %s %s", g.names[o], value)
	text := g.text(s.Comment)
	if text != "" && len(line)+len(text)+7 > width {
		g.printf("%s", block(text, ""))
		text = ""
	}
	if text != "" {
		line += " /* " + text + " */"
	}
	g.printf("%s\n", line)
	g.defined[o] = true
}

// notation writes a constant as the source does, if that is a hexadecimal number or a power of two. ctype, if it is not empty, is what //c:type says.
func notation(e ast.Expr, value, ctype string) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if strings.HasPrefix(e.Value, "0x") {
			value = e.Value + strings.TrimLeft(value, "0123456789abcdefx")
		}
	case *ast.BinaryExpr:
		x, ok := e.X.(*ast.BasicLit)
		y, well := e.Y.(*ast.BasicLit)
		if ok && well && e.Op == token.SHL && ctype != "" {
			return "((" + ctype + ")" + x.Value + " << " + y.Value + ")"
		} else if ok && well && e.Op == token.SHL && !strings.HasSuffix(value, "ll") {
			return "(" + x.Value + "u << " + y.Value + ")"
		}
	}
	if ctype != "" {
		return "((" + ctype + ")" + value + ")"
	}
	return value
}

// number is the C literal of a constant, in the notation of the source where that is a plain one.
func number(o *types.Const) string {
	basic, ok := o.Type().Underlying().(*types.Basic)
	if !ok || basic.Info()&types.IsInteger == 0 {
		return ""
	}
	return literal(o.Val(), basic)
}

// literal writes an integer so that C gives it a type which is unsigned, unless t is signed, and wide enough.
func literal(v constant.Value, t *types.Basic) string {
	v = constant.ToInt(v)
	if i, exact := constant.Int64Val(v); exact && (i < 0 || t != nil && t.Info()&types.IsUntyped == 0 && t.Info()&types.IsUnsigned == 0) {
		if i < -1<<31 || i >= 1<<31 {
			return fmt.Sprintf("%dll", i)
		}
		return fmt.Sprintf("%d", i)
	}
	u, exact := constant.Uint64Val(v)
	if !exact {
		return ""
	}
	digits := fmt.Sprintf("%d", u)
	if u > 0xffff && u&(u+1) == 0 {
		digits = fmt.Sprintf("%#x", u)
	}
	if u > 0xffffffff || t != nil && (t.Kind() == types.Uint64) && u > 0xffffffff {
		return digits + "ull"
	}
	return digits + "u"
}

// cType is the C type of a value; ptr: its declarator ends in a star, to which a name is joined.
func (g *generator) cType(at ast.Node, t types.Type) string {
	switch t := t.(type) {
	case *types.Named:
		o := t.Obj()
		if o.Pkg() != g.types {
			if b, ok := t.Underlying().(*types.Basic); ok {
				return g.cType(at, b)
			}
			g.refuse(at, "the type %s of another package", t)
			return "?"
		}
		name, ok := g.names[o]
		if !ok {
			g.refuse(at, "the type %s: it is in none of the files, and not //c:extern", o.Name())
			return "?"
		}
		return name
	case *types.Alias:
		return g.cType(at, types.Unalias(t))
	case *types.Pointer:
		if array, ok := t.Elem().Underlying().(*types.Array); ok {
			return star(g.cType(at, array.Elem()))
		}
		return star(g.cType(at, t.Elem()))
	case *types.Basic:
		switch t.Kind() {
		case types.Bool, types.UntypedBool:
			return "bool"
		case types.Int8, types.Int16, types.Int32, types.Int64, types.Uint8, types.Uint16, types.Uint32, types.Uint64:
			return types.Typ[t.Kind()].String() + "_t" // byte is uint8
		case types.UnsafePointer:
			return "void *"
		}
	}
	g.refuse(at, "the type %s", types.TypeString(t, types.RelativeTo(g.types)))
	return "?"
}

func star(t string) string {
	if strings.HasSuffix(t, "*") {
		return t + "*"
	}
	return t + " *"
}

// declare joins a type and a name.
func declare(t, name string) string {
	if strings.HasSuffix(t, "*") {
		return t + name
	}
	return t + " " + name
}

func (g *generator) typeDecl(s *ast.TypeSpec, doc *ast.CommentGroup) {
	o := g.info.Defs[s.Name].(*types.TypeName)
	name := g.names[o]
	if s.TypeParams != nil {
		g.refuse(s, "a generic type")
		return
	}
	if s.Assign != 0 {
		g.refuse(s, "an alias of a type")
		return
	}
	if g.taken[name] != nil {
		g.refuse(s.Name, "%s is %s in C, as is something else", o.Name(), name)
	}
	g.taken[name] = o
	st, isStruct := o.Type().Underlying().(*types.Struct)
	if !g.extern[o] {
		g.doc(doc, "")
		if isStruct {
			g.structure(s, st, name)
		} else {
			g.printf("typedef %s;\n", declare(g.cType(s, o.Type().Underlying()), name))
		}
	}
	if isStruct && (g.shared[o] || g.extern[o]) {
		g.layout(s, st, o)
	}
	g.printf("\n")
	g.defined[o] = true
}

func (g *generator) structure(s *ast.TypeSpec, st *types.Struct, name string) {
	g.printf("typedef struct %s {\n", name)
	ast := s.Type.(*ast.StructType)
	pads, i := 0, 0
	for k, field := range ast.Fields.List {
		if k > 0 && g.apart(ast.Fields.List[k-1].End(), field) {
			g.printf("\n")
		}
		g.doc(field.Doc, "\t")
		if len(field.Names) == 0 {
			g.refuse(field, "an embedded field")
			return
		}
		var names []string
		var ctype string
		for _, n := range field.Names {
			v := st.Field(i)
			i++
			t := v.Type()
			if g.fieldC[v] != "" {
				ctype = g.fieldC[v]
				names = append(names, g.local(n))
				continue
			}
			suffix := ""
			if a, ok := t.Underlying().(*types.Array); ok {
				suffix = fmt.Sprintf("[%d]", a.Len())
				if c := g.lengthName(field.Type); c != "" {
					suffix = "[" + c + "]"
				}
				t = a.Elem()
			}
			if named := namedOf(t); named != nil && named.Obj().Pkg() == g.types && !g.defined[named.Obj()] {
				g.refuse(field, "the type %s, which is declared further down", named.Obj().Name())
			}
			if n.Name == "_" {
				names = append(names, fmt.Sprintf("pad%d%s", pads, suffix))
				pads++
			} else {
				names = append(names, g.local(n)+suffix)
			}
			ctype = g.cType(field, t)
		}
		g.printf("\t%s;", declare(ctype, strings.Join(names, ", ")))
		if text := g.text(field.Comment); text != "" {
			g.printf(" /* %s */", text)
		}
		g.printf("\n")
	}
	g.skip(s.End())
	g.printf("} %s;\n", name)
}

// lengthName is the constant that an array's length is, if it is one by name.
func (g *generator) lengthName(t ast.Expr) string {
	if a, ok := t.(*ast.ArrayType); ok {
		if id, ok := a.Len.(*ast.Ident); ok {
			if c, ok := g.info.Uses[id].(*types.Const); ok {
				return g.names[c]
			}
		}
	}
	return ""
}

// layout asserts in C where the fields of a struct lie. What lies in shared memory has no padding that a compiler chooses, and no pointers.
func (g *generator) layout(s *ast.TypeSpec, st *types.Struct, o *types.TypeName) {
	var fields []*types.Var
	for f := range st.Fields() {
		fields = append(fields, f)
	}
	if !g.shared[o] {
		return
	}
	offsets := sizes.Offsetsof(fields)
	end := int64(0)
	for i, f := range fields {
		if g.fieldC[f] == "" && !fixed(f.Type()) {
			g.refuse(s, "the field %s of %s: shared memory has fixed-width integers, and arrays and structs of them", f.Name(), o.Name())
		}
		if offsets[i] != end {
			g.refuse(s, "%s has padding before %s: name it", o.Name(), f.Name())
		}
		end = offsets[i] + sizes.Sizeof(f.Type())
		if f.Name() != "_" {
			g.asserts = append(g.asserts, fmt.Sprintf("PP__AT(%s, %s, %d);\n", g.names[o], snake(f.Name()), offsets[i]))
		}
	}
	if size := sizes.Sizeof(st); size != end {
		g.refuse(s, "%s has padding at its end: name it", o.Name())
	}
	g.asserts = append(g.asserts, fmt.Sprintf("_Static_assert(sizeof(%s) == %d, \"%s\");\n", g.names[o], end, g.names[o]))
}

// fixed reports whether a type may lie in shared memory.
func fixed(t types.Type) bool {
	switch t := t.Underlying().(type) {
	case *types.Basic:
		switch t.Kind() {
		case types.Int8, types.Int16, types.Int32, types.Int64, types.Uint8, types.Uint16, types.Uint32, types.Uint64:
			return true
		}
	case *types.Array:
		return fixed(t.Elem())
	case *types.Struct:
		for f := range t.Fields() {
			if !fixed(f.Type()) {
				return false
			}
		}
		return true
	}
	return false
}

// local is the C name of a variable or field.
func (g *generator) local(n *ast.Ident) string {
	name := snake(n.Name)
	if reserved[name] {
		g.refuse(n, "the name %s, which means something else in C", n.Name)
	}
	return name
}
