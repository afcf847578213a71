package cgen

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"strings"
)

// function is what is known of the one being written.
type function struct {
	decl    *ast.FuncDecl
	changed map[types.Object]bool // assigned after their declaration, or their address is taken
}

// head is the C declarator of a function.
func (g *generator) head(d *ast.FuncDecl) string {
	o := g.info.Defs[d.Name].(*types.Func)
	s := o.Signature()
	result := "void"
	switch s.Results().Len() {
	case 0:
	case 1:
		result = g.cType(d, s.Results().At(0).Type())
		if d.Type.Results.List[0].Names != nil {
			g.refuse(d.Type.Results, "a named result")
		}
	default:
		g.refuse(d.Type.Results, "more than one result")
	}
	var params []string
	fields := d.Type.Params.List
	if d.Recv != nil {
		fields = append(append([]*ast.Field{}, d.Recv.List...), fields...)
	}
	if d.Type.TypeParams != nil {
		g.refuse(d, "a generic function")
	}
	for _, f := range fields {
		if _, ok := f.Type.(*ast.Ellipsis); ok {
			g.refuse(f, "a variadic function")
			continue
		}
		t := g.paramType(f, g.externFunc(o))
		if len(f.Names) == 0 {
			g.refuse(f, "a parameter without a name")
		}
		for _, n := range f.Names {
			param := declare(t, g.local(n))
			if p := g.info.Defs[n]; p != nil && g.readOnly(p) {
				param = "const " + param
			}
			params = append(params, param)
		}
	}
	if len(params) == 0 {
		params = []string{"void"}
	}
	inline := ""
	if g.pure[o] {
		inline = "inline "
	}
	return "static " + inline + declare(result, g.function(o)) + "(" + strings.Join(params, ", ") + ")"
}

// paramType is the C type of a parameter. Only what is written by hand may take strings.
func (g *generator) paramType(f *ast.Field, byHand bool) string {
	t := g.info.TypeOf(f.Type)
	if b, ok := t.Underlying().(*types.Basic); ok && b.Kind() == types.String && byHand {
		return "const char *"
	}
	return g.cType(f, t)
}

func (g *generator) define(d *ast.FuncDecl) {
	if d.Body == nil {
		g.refuse(d, "a function without a body")
		return
	}
	o := g.info.Defs[d.Name]
	g.fn = &function{decl: d, changed: map[types.Object]bool{}}
	g.changes(d.Body)
	g.doc(d.Doc, "")
	g.skip(d.Body.Lbrace)
	g.printf("%s\n{\n", g.head(d))
	g.block(d.Body, 1)
	g.printf("}\n\n")
	g.defined[o] = true
	delete(g.prefixed, o)
	g.fn = nil
}

// changes finds the variables that are not constant.
func (g *generator) changes(body *ast.BlockStmt) {
	mark := func(e ast.Expr) {
		for {
			switch x := ast.Unparen(e).(type) {
			case *ast.SelectorExpr:
				if _, ok := g.info.TypeOf(x.X).Underlying().(*types.Pointer); ok {
					return
				}
				e = x.X
				continue
			case *ast.IndexExpr:
				e = x.X
				continue
			case *ast.Ident:
				if o := g.info.Uses[x]; o != nil {
					g.fn.changed[o] = true
				}
			}
			return
		}
	}
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, l := range n.Lhs {
					mark(l)
				}
			}
		case *ast.IncDecStmt:
			mark(n.X)
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				mark(n.X)
			}
		case *ast.CallExpr:
			if sel, ok := n.Fun.(*ast.SelectorExpr); ok {
				if s := g.info.Selections[sel]; s != nil && s.Kind() == types.MethodVal {
					_, byPointer := s.Obj().(*types.Func).Signature().Recv().Type().(*types.Pointer)
					if _, pointer := g.info.TypeOf(sel.X).Underlying().(*types.Pointer); byPointer && !pointer {
						mark(sel.X)
					}
				}
			}
		}
		return true
	})
}

// ---- statements

func tabs(n int) string { return strings.Repeat("\t", n) }

// block writes the statements of a block, with the comments and empty lines between them.
func (g *generator) block(b *ast.BlockStmt, depth int) {
	g.list(b.List, b.Lbrace, b.Rbrace, depth)
}

func (g *generator) list(stmts []ast.Stmt, begin, end token.Pos, depth int) {
	last := begin
	for i, s := range stmts {
		from := s.Pos()
		if c := g.nextComment(s.Pos()); c != nil {
			from = c.Pos()
		}
		if i > 0 && g.line(from) > g.line(last)+1 {
			g.printf("\n")
		}
		g.before(s.Pos(), depth)
		g.stmt(s, depth)
		last = s.End()
	}
	g.before(end, depth)
}

func (g *generator) stmt(s ast.Stmt, depth int) {
	in := tabs(depth)
	switch s := s.(type) {
	case *ast.EmptyStmt:
	case *ast.DeclStmt:
		d := s.Decl.(*ast.GenDecl)
		if d.Tok != token.VAR {
			g.refuse(s, "a declaration that is no var")
			return
		}
		for _, spec := range d.Specs {
			spec := spec.(*ast.ValueSpec)
			for i, n := range spec.Names {
				value := ""
				if len(spec.Values) > i {
					value = g.assigned(spec.Values[i], g.info.Defs[n].Type())
				}
				g.printf("%s%s;", in, g.variable(n, value))
				g.trailing(s.End())
			}
		}
	case *ast.AssignStmt:
		g.assign(s, in)
	case *ast.IncDecStmt:
		g.unsigned(s, g.info.TypeOf(s.X))
		if _, ok := ast.Unparen(s.X).(*ast.StarExpr); ok {
			g.printf("%s(%s)%s;", in, g.place(s.X), s.Tok)
		} else {
			g.printf("%s%s%s;", in, g.place(s.X), s.Tok)
		}
		g.trailing(s.End())
	case *ast.ExprStmt:
		if _, ok := s.X.(*ast.CallExpr); !ok {
			g.refuse(s, "an expression as a statement")
		}
		g.printf("%s%s;", in, g.expr(s.X, 0))
		g.trailing(s.End())
	case *ast.ReturnStmt:
		switch len(s.Results) {
		case 0:
			g.printf("%sreturn;", in)
		case 1:
			g.printf("%sreturn %s;", in, g.assigned(s.Results[0], g.result()))
		default:
			g.refuse(s, "more than one result")
		}
		g.trailing(s.End())
	case *ast.BranchStmt:
		if s.Label != nil || s.Tok != token.BREAK && s.Tok != token.CONTINUE {
			g.refuse(s, "%s with a label, goto or fallthrough", s.Tok)
		}
		g.printf("%s%s;", in, s.Tok)
		g.trailing(s.End())
	case *ast.BlockStmt:
		g.printf("%s{", in)
		g.trailing(s.Lbrace)
		g.block(s, depth+1)
		g.printf("%s}\n", in)
	case *ast.IfStmt:
		g.printf("%s", in)
		g.ifStmt(s, depth)
	case *ast.ForStmt:
		g.forStmt(s, depth)
	case *ast.RangeStmt:
		g.rangeStmt(s, depth)
	case *ast.SwitchStmt:
		g.switchStmt(s, depth)
	default:
		g.refuse(s, "%s", kindOf(s))
	}
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.GoStmt:
		return "go"
	case *ast.DeferStmt:
		return "defer"
	case *ast.SelectStmt, *ast.SendStmt:
		return "a channel"
	case *ast.LabeledStmt:
		return "a label"
	case *ast.TypeSwitchStmt, *ast.TypeAssertExpr:
		return "an interface"
	case *ast.FuncLit:
		return "a closure"
	case *ast.SliceExpr:
		return "a slice"
	case *ast.MapType:
		return "a map"
	}
	return fmt.Sprintf("%T", n)[len("*ast."):]
}

func (g *generator) result() types.Type {
	return g.info.Defs[g.fn.decl.Name].(*types.Func).Signature().Results().At(0).Type()
}

// variable declares a local one. No value is zero, as in Go.
func (g *generator) variable(n *ast.Ident, value string) string {
	o := g.info.Defs[n]
	for scope := o.Parent().Parent(); scope != nil && scope != g.types.Scope(); scope = scope.Parent() {
		if other := scope.Lookup(n.Name); other != nil && other.Pos() < n.Pos() {
			if _, ok := other.(*types.Var); ok {
				g.refuse(n, "%s hides another %s", n.Name, n.Name)
			}
		}
	}
	if value == "" {
		switch o.Type().Underlying().(type) {
		case *types.Struct:
			value = "{0}"
		case *types.Pointer:
			value = "NULL"
		default:
			value = "0"
			if b, ok := o.Type().Underlying().(*types.Basic); ok && b.Kind() == types.Bool {
				value = "false"
			}
		}
	}
	value = strings.TrimPrefix(value, "("+g.cType(n, o.Type())+"){")
	if strings.HasSuffix(value, "}") && !strings.HasPrefix(value, "{") {
		value = "{" + value
	}
	text := declare(g.cType(n, o.Type()), g.local(n)) + " = " + value
	if !g.fn.changed[o] {
		if _, pointer := o.Type().Underlying().(*types.Pointer); pointer || types.Identical(o.Type(), types.Typ[types.UnsafePointer]) {
			text = declare(g.cType(n, o.Type())+"const", " "+g.local(n)) + " = " + value
			text = strings.Replace(text, "const  ", "const ", 1)
		} else {
			text = "const " + text
		}
	}
	return text
}

func (g *generator) assign(s *ast.AssignStmt, in string) {
	if s.Tok == token.DEFINE {
		if len(s.Lhs) != len(s.Rhs) {
			g.refuse(s, "more than one result")
			return
		}
		for i, l := range s.Lhs {
			n := l.(*ast.Ident)
			if g.info.Defs[n] == nil {
				g.refuse(n, "%s := of a variable that is there", n.Name)
				return
			}
			g.printf("%s%s;", in, g.variable(n, g.assigned(s.Rhs[i], g.info.Defs[n].Type())))
			if i+1 < len(s.Lhs) {
				g.printf("\n")
			}
		}
		g.trailing(s.End())
		return
	}
	if len(s.Lhs) != 1 {
		g.refuse(s, "more than one assignment at a time")
		return
	}
	l, r := s.Lhs[0], s.Rhs[0]
	t := g.info.TypeOf(l)
	if g.impure(l) && g.impure(r) {
		g.refuse(s, "two operands that call functions which read or write memory: C leaves their order open")
	}
	if id, ok := l.(*ast.Ident); ok && id.Name == "_" {
		g.printf("%s(void)%s;", in, g.expr(r, 15))
		g.trailing(s.End())
		return
	}
	switch s.Tok {
	case token.ASSIGN:
		g.printf("%s%s = %s;", in, g.place(l), g.assigned(r, t))
	case token.AND_NOT_ASSIGN:
		g.unsigned(s, t)
		g.printf("%s%s &= ~(%s)%s;", in, g.place(l), g.cType(s, t), g.expr(r, 14))
	case token.SHL_ASSIGN, token.SHR_ASSIGN:
		g.unsigned(s, t)
		g.count(r, t)
		g.printf("%s%s %s %s;", in, g.place(l), s.Tok, g.expr(r, 0))
	default:
		g.unsigned(s, t)
		if s.Tok == token.QUO_ASSIGN || s.Tok == token.REM_ASSIGN {
			g.divisor(r)
		}
		g.printf("%s%s %s %s;", in, g.place(l), s.Tok, g.expr(g.implicit(r), 0))
	}
	g.trailing(s.End())
}

// assigned is an expression that gets the type t.
func (g *generator) assigned(e ast.Expr, t types.Type) string {
	return g.expr(g.implicit(e), 0)
}

// implicit strips conversions that C makes by itself where a value is assigned, passed or compared: to a wider unsigned type, and from void *.
func (g *generator) implicit(e ast.Expr) ast.Expr {
	call, ok := ast.Unparen(e).(*ast.CallExpr)
	if !ok || !g.info.Types[call.Fun].IsType() || g.info.Types[ast.Expr(call)].Value != nil {
		return e
	}
	to, from := g.info.TypeOf(call.Fun), g.info.TypeOf(call.Args[0])
	if b, ok := from.Underlying().(*types.Basic); ok {
		if _, pointer := to.Underlying().(*types.Pointer); pointer && b.Kind() == types.UnsafePointer && g.info.TypeOf(call.Args[0]) != nil {
			if inner, ok := ast.Unparen(call.Args[0]).(*ast.CallExpr); ok && g.isAdd(inner) {
				return e // C knows a pointer to bytes there
			}
			return call.Args[0]
		}
		if t, ok := to.Underlying().(*types.Basic); ok && b.Info()&t.Info()&types.IsUnsigned != 0 && sizes.Sizeof(b) < sizes.Sizeof(t) {
			return call.Args[0]
		}
	}
	return e
}

func (g *generator) isAdd(call *ast.CallExpr) bool {
	b, ok := g.callee(call).(*types.Builtin)
	return ok && b.Name() == "Add"
}

// place is what is assigned to.
func (g *generator) place(e ast.Expr) string {
	g.plain(e)
	return g.expr(e, 14)
}

// plain refuses to read or write shared memory without package mem.
func (g *generator) plain(e ast.Expr) {
	e = ast.Unparen(e)
	if n, ok := g.info.TypeOf(e).(*types.Named); ok && g.shared[n.Obj()] {
		g.refuse(e, "%s is read or written whole: it lies in shared memory", n.Obj().Name())
		return
	}
	for {
		switch x := e.(type) {
		case *ast.SelectorExpr:
			if n := namedOf(g.info.TypeOf(x.X)); n != nil && g.shared[n.Obj()] {
				g.refuse(x, "%s.%s is read or written without package mem: it lies in shared memory", n.Obj().Name(), x.Sel.Name)
				return
			}
			if _, pointer := g.info.TypeOf(x.X).Underlying().(*types.Pointer); pointer {
				return
			}
			e = ast.Unparen(x.X)
		case *ast.IndexExpr:
			if _, pointer := g.info.TypeOf(x.X).Underlying().(*types.Pointer); pointer {
				g.refuse(x, "an element behind a pointer is read or written without package mem")
				return
			}
			e = ast.Unparen(x.X)
		case *ast.StarExpr:
			if _, basic := g.info.TypeOf(x).Underlying().(*types.Basic); basic && !g.out(x.X) {
				g.refuse(x, "a word behind a pointer is read or written without package mem")
			}
			return
		default:
			return
		}
	}
}

// out reports whether an expression is a parameter: what it points to may be a caller's variable, for a second result.
func (g *generator) out(e ast.Expr) bool {
	id, ok := ast.Unparen(e).(*ast.Ident)
	if !ok {
		return false
	}
	o := g.info.Uses[id]
	for v := range g.info.Defs[g.fn.decl.Name].(*types.Func).Signature().Params().Variables() {
		if v == o {
			return true
		}
	}
	return false
}

// simple reports whether a block can stand without braces: one statement of one line, no comment of its own line.
func (g *generator) simple(b *ast.BlockStmt) bool {
	if len(b.List) != 1 {
		return false
	}
	switch s := b.List[0].(type) {
	case *ast.AssignStmt:
		if s.Tok == token.DEFINE {
			return false
		}
	case *ast.ExprStmt, *ast.IncDecStmt, *ast.ReturnStmt, *ast.BranchStmt:
	default:
		return false
	}
	for _, c := range g.comments {
		if c.Pos() > b.Lbrace && c.Pos() < b.Rbrace && g.line(c.Pos()) != g.line(b.List[0].Pos()) && g.line(c.Pos()) != g.line(b.Lbrace) {
			return false
		}
	}
	return true
}

// body writes the block of a statement whose head was written, without its end of line.
func (g *generator) body(b *ast.BlockStmt, depth int, braces bool) {
	if !braces && g.simple(b) {
		g.trailing(b.Lbrace)
		g.block(b, depth+1)
		return
	}
	g.printf(" {")
	g.trailing(b.Lbrace)
	g.block(b, depth+1)
	g.printf("%s}", tabs(depth))
}

// arms are the blocks of an if and what follows it; with is whether one of them needs braces.
func (g *generator) arms(s *ast.IfStmt) (with bool) {
	with = !g.simple(s.Body)
	switch e := s.Else.(type) {
	case *ast.BlockStmt:
		with = with || !g.simple(e)
	case *ast.IfStmt:
		with = g.arms(e) || with
	}
	return with
}

func (g *generator) ifStmt(s *ast.IfStmt, depth int) {
	braces := g.arms(s)
	for {
		if s.Init != nil {
			g.refuse(s.Init, "an init statement of if: write it before")
		}
		g.printf("if (%s)", g.expr(s.Cond, 0))
		g.body(s.Body, depth, braces)
		if s.Else == nil {
			break
		}
		if braces {
			g.printf(" else")
		} else {
			g.printf("%selse", tabs(depth))
		}
		if e, ok := s.Else.(*ast.IfStmt); ok {
			g.printf(" ")
			s = e
			continue
		}
		g.body(s.Else.(*ast.BlockStmt), depth, braces)
		break
	}
	if braces {
		g.printf("\n")
	}
}

func (g *generator) closed(b *ast.BlockStmt) {
	if !strings.HasSuffix(g.b.String(), "\n") {
		g.printf("\n")
	}
}

func (g *generator) forStmt(s *ast.ForStmt, depth int) {
	in := tabs(depth)
	switch {
	case s.Init == nil && s.Post == nil && s.Cond == nil:
		g.printf("%sfor (;;)", in)
	case s.Init == nil && s.Post == nil:
		g.printf("%swhile (%s)", in, g.expr(s.Cond, 0))
	default:
		cond := ""
		if s.Cond != nil {
			cond = " " + g.expr(s.Cond, 0)
		}
		post := g.clause(s.Post)
		if post != "" {
			post = " " + post
		}
		g.printf("%sfor (%s;%s;%s)", in, g.clause(s.Init), cond, post)
	}
	g.body(s.Body, depth, false)
	g.closed(s.Body)
}

// clause is a statement in the head of for.
func (g *generator) clause(s ast.Stmt) string {
	if s == nil {
		return ""
	}
	if a, ok := s.(*ast.AssignStmt); ok && len(a.Lhs) != 1 {
		g.refuse(s, "more than one assignment at a time")
		return ""
	}
	keep, comments := g.b.String(), g.comments
	g.b.Reset()
	g.comments = nil
	g.stmt(s, 0)
	text := strings.TrimSuffix(strings.TrimSpace(g.b.String()), ";")
	g.b.Reset()
	g.b.WriteString(keep)
	g.comments = comments
	return text
}

func (g *generator) rangeStmt(s *ast.RangeStmt, depth int) {
	b, ok := g.info.TypeOf(s.X).Underlying().(*types.Basic)
	if !ok || b.Info()&types.IsUnsigned == 0 {
		g.refuse(s, "range over anything but an unsigned integer")
		return
	}
	if g.info.Types[s.X].Value == nil {
		if id, ok := ast.Unparen(s.X).(*ast.Ident); !ok || g.fn.changed[g.info.Uses[id]] {
			g.refuse(s.X, "range over anything but a constant, or a variable that keeps its value: C evaluates it each time")
		}
	}
	name := "i"
	if s.Key != nil {
		id := s.Key.(*ast.Ident)
		name = g.local(id)
		if s.Tok != token.DEFINE {
			g.refuse(s, "range that assigns to a variable that is there")
		} else if g.fn.changed[g.info.Defs[id]] {
			g.refuse(id, "%s is changed in its loop: in C that changes how often it runs", id.Name)
		}
	}
	g.printf("%sfor (%s = 0; %s < %s; %s++)", tabs(depth), declare(g.cType(s, g.info.TypeOf(s.X)), name), name, g.expr(s.X, 10), name)
	g.body(s.Body, depth, false)
	g.closed(s.Body)
}

func (g *generator) switchStmt(s *ast.SwitchStmt, depth int) {
	in := tabs(depth)
	if s.Init != nil {
		g.refuse(s.Init, "an init statement of switch: write it before")
	}
	if s.Tag == nil {
		g.chain(s, depth)
		return
	}
	g.printf("%sswitch (%s) {", in, g.expr(s.Tag, 0))
	g.trailing(s.Body.Lbrace)
	for i, c := range s.Body.List {
		c := c.(*ast.CaseClause)
		g.before(c.Pos(), depth)
		brace := ""
		if declares(c) {
			brace = " {"
		}
		if c.List == nil {
			if i+1 < len(s.Body.List) {
				g.refuse(c, "default that is not last")
			}
			g.printf("%sdefault:%s", in, brace)
			g.trailing(c.Colon)
		}
		for k, e := range c.List {
			if g.info.Types[e].Value == nil {
				g.refuse(e, "a case that is no constant")
			}
			g.printf("%scase %s:", in, g.expr(e, 0))
			if k+1 < len(c.List) {
				g.printf("\n")
			} else {
				g.printf("%s", brace)
				g.trailing(c.Colon)
			}
		}
		g.list(c.Body, c.Colon, c.End(), depth+1)
		if n := len(c.Body); n == 0 || !ends(c.Body[n-1]) {
			g.printf("%sbreak;\n", tabs(depth+1))
		}
		if brace != "" {
			g.printf("%s}\n", in)
		}
	}
	g.before(s.Body.Rbrace, depth)
	g.printf("%s}\n", in)
}

// declares reports whether a case has variables of its own, for which C wants a block.
func declares(c *ast.CaseClause) bool {
	for _, s := range c.Body {
		switch s := s.(type) {
		case *ast.DeclStmt:
			return true
		case *ast.AssignStmt:
			if s.Tok == token.DEFINE {
				return true
			}
		}
	}
	return false
}

// ends reports whether what follows a statement is never reached.
func ends(s ast.Stmt) bool {
	switch s.(type) {
	case *ast.ReturnStmt, *ast.BranchStmt:
		return true
	}
	return false
}

// chain writes a switch without a tag: if, else if, else.
func (g *generator) chain(s *ast.SwitchStmt, depth int) {
	in := tabs(depth)
	for i, c := range s.Body.List {
		c := c.(*ast.CaseClause)
		ast.Inspect(c, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ForStmt, *ast.RangeStmt, *ast.SwitchStmt:
				return false
			case *ast.BranchStmt:
				if n.Tok == token.BREAK {
					g.refuse(n, "break in a switch without a tag")
				}
			}
			return true
		})
		var cond []string
		for _, e := range c.List {
			prec := 0
			if len(c.List) > 1 {
				prec = 3
			}
			cond = append(cond, g.expr(e, prec))
		}
		switch {
		case c.List == nil && i+1 < len(s.Body.List):
			g.refuse(c, "default that is not last")
		case i == 0:
			g.before(c.Pos(), depth)
			g.printf("%sif (%s) {", in, strings.Join(cond, " || "))
		case c.List == nil:
			g.printf("%s} else {", in)
		default:
			g.printf("%s} else if (%s) {", in, strings.Join(cond, " || "))
		}
		g.trailing(c.Colon)
		g.list(c.Body, c.Colon, c.End(), depth+1)
	}
	g.before(s.Body.Rbrace, depth+1)
	g.printf("%s}\n", in)
}

// ---- expressions

// Precedences of C, the higher the tighter.
var precedence = map[token.Token]int{
	token.LOR: 1, token.LAND: 2, token.OR: 3, token.XOR: 4, token.AND: 5, token.AND_NOT: 5, token.EQL: 6, token.NEQ: 6,
	token.LSS: 7, token.LEQ: 7, token.GTR: 7, token.GEQ: 7, token.SHL: 8, token.SHR: 8, token.ADD: 9, token.SUB: 9,
	token.MUL: 10, token.QUO: 10, token.REM: 10,
}

// expr writes an expression, in parentheses if it binds less than prec.
func (g *generator) expr(e ast.Expr, prec int) string {
	e = ast.Unparen(e)
	if tv := g.info.Types[e]; tv.Value != nil {
		return g.constantExpr(e, tv, prec)
	}
	switch e := e.(type) {
	case *ast.Ident:
		return g.ident(e)
	case *ast.BinaryExpr:
		return g.binary(e, prec)
	case *ast.UnaryExpr:
		return g.unary(e)
	case *ast.StarExpr:
		g.plain(e)
		return "*" + g.expr(e.X, 14)
	case *ast.SelectorExpr:
		return g.selector(e)
	case *ast.IndexExpr:
		g.plain(e)
		return g.index(e)
	case *ast.CallExpr:
		return g.call(e, prec)
	case *ast.CompositeLit:
		return g.composite(e)
	}
	g.refuse(e, "%s", kindOf(e))
	return "?"
}

// constantExpr writes what Go computes at compile time: as it stands, if C comes to the same.
func (g *generator) constantExpr(e ast.Expr, tv types.TypeAndValue, prec int) string {
	basic, _ := tv.Type.Underlying().(*types.Basic)
	if basic == nil || basic.Info()&types.IsString != 0 {
		g.refuse(e, "a string, other than as an argument of a function that is written by hand")
		return "?"
	}
	if basic.Kind() == types.Bool || basic.Kind() == types.UntypedBool {
		return fmt.Sprint(constant.BoolVal(tv.Value))
	}
	if basic.Info()&types.IsInteger == 0 {
		g.refuse(e, "a number that is no integer")
		return "?"
	}
	// The operands of a constant expression keep no type: then the whole has been looked at.
	signed := basic.Info()&(types.IsUnsigned|types.IsUntyped) == 0
	switch x := e.(type) {
	case *ast.Ident:
		if name, ok := g.names[g.info.Uses[x]]; ok {
			o := g.info.Uses[x].(*types.Const)
			if b := o.Type().Underlying().(*types.Basic); signed && b.Info()&types.IsUntyped != 0 && constant.Sign(o.Val()) >= 0 && !g.extern[o] {
				return "(" + g.cType(e, tv.Type) + ")" + name // the macro is unsigned
			}
			return name
		}
		if _, ok := g.info.Uses[x].(*types.Const); ok {
			g.refuse(x, "the constant %s, which is in none of the files", x.Name)
		}
	case *ast.BinaryExpr:
		left, right := g.info.Types[ast.Unparen(x.X)], g.info.Types[ast.Unparen(x.Y)]
		if small(left.Value) && small(right.Value) && small(tv.Value) && x.Op != token.AND_NOT && !signed && !(x.Op == token.SHL && basic.Info()&types.IsUntyped != 0) {
			return g.join(x, prec)
		}
	case *ast.CallExpr:
		if g.info.Types[x.Fun].IsType() && !signed {
			if arg := ast.Unparen(x.Args[0]); small(g.info.Types[arg].Value) {
				return g.constantExpr(arg, g.info.Types[arg], prec)
			}
		}
	case *ast.BasicLit:
		if v, exact := constant.Int64Val(constant.ToInt(tv.Value)); exact && v >= 0 && v < 1<<31 && x.Kind == token.INT {
			if strings.HasPrefix(x.Value, "0x") {
				return strings.ReplaceAll(x.Value, "_", "")
			}
			return fmt.Sprint(v)
		}
	}
	return literal(tv.Value, basic)
}

// small reports whether C computes with a value in 32 unsigned bits as Go does.
func small(v constant.Value) bool {
	if v == nil {
		return false
	}
	i, exact := constant.Int64Val(constant.ToInt(v))
	return exact && i >= 0 && i < 1<<31
}

func (g *generator) ident(e *ast.Ident) string {
	switch o := g.info.Uses[e].(type) {
	case *types.Nil:
		return "NULL"
	case *types.Var:
		if o.Parent() == g.types.Scope() {
			g.refuse(e, "the package variable %s", e.Name)
		}
		return g.local(e)
	}
	g.refuse(e, "%s as a value", e.Name)
	return "?"
}

// unsigned refuses arithmetic on other types.
func (g *generator) unsigned(at ast.Node, t types.Type) {
	b, ok := t.Underlying().(*types.Basic)
	if ok && (b.Kind() == types.Uint32 || b.Kind() == types.Uint64) {
		return
	}
	g.refuse(at, "arithmetic on %s: only uint32 and uint64 have it", types.TypeString(t, types.RelativeTo(g.types)))
}

func (g *generator) binary(e *ast.BinaryExpr, prec int) string {
	if e.Op != token.LAND && e.Op != token.LOR && g.impure(e.X) && g.impure(e.Y) {
		g.refuse(e, "two operands that call functions which read or write memory: C leaves their order open")
	}
	switch e.Op {
	case token.EQL, token.NEQ, token.LSS, token.LEQ, token.GTR, token.GEQ, token.LAND, token.LOR:
		switch g.info.TypeOf(e.X).Underlying().(type) {
		case *types.Struct, *types.Interface, *types.Array:
			g.refuse(e, "a comparison of anything but integers and pointers")
		}
	case token.SHL, token.SHR:
		g.unsigned(e, g.info.TypeOf(e))
		g.count(e.Y, g.info.TypeOf(e))
	case token.QUO, token.REM:
		g.unsigned(e, g.info.TypeOf(e))
		g.divisor(e.Y)
	default:
		g.unsigned(e, g.info.TypeOf(e))
	}
	return g.join(e, prec)
}

// join writes the two operands. gcc wants parentheses where readers may err.
func (g *generator) join(e *ast.BinaryExpr, prec int) string {
	p := precedence[e.Op]
	left, right := p, p+1
	side := func(x ast.Expr, prec int) string {
		x = g.bare(x)
		if b, ok := ast.Unparen(x).(*ast.BinaryExpr); ok && (b.Op != e.Op || e.Op == token.EQL || e.Op == token.NEQ) {
			tight := precedence[b.Op] >= precedence[token.SHL]
			switch e.Op {
			case token.OR, token.XOR, token.AND, token.AND_NOT:
				if !tight || b.Op == token.ADD || b.Op == token.SUB {
					prec = 11
				}
			case token.SHL, token.SHR:
				if b.Op == token.ADD || b.Op == token.SUB {
					prec = 11
				}
			case token.EQL, token.NEQ:
				if precedence[b.Op] >= precedence[token.EQL] && !tight {
					prec = 11
				}
			case token.LOR:
				if b.Op == token.LAND {
					prec = 11
				}
			}
		}
		switch e.Op {
		case token.EQL, token.NEQ, token.LSS, token.LEQ, token.GTR, token.GEQ:
			x = g.implicit(x)
		}
		return g.expr(x, prec)
	}
	op := e.Op.String()
	x := side(e.X, left)
	if e.Op == token.SHL && g.info.Types[ast.Unparen(e.X)].Value != nil {
		x = "(" + g.cType(e, g.info.TypeOf(e)) + ")" + g.expr(e.X, 14)
	}
	y := side(e.Y, right)
	if e.Op == token.AND_NOT {
		op = "&"
		y = "~" + g.expr(e.Y, 14)
		if g.info.Types[ast.Unparen(e.Y)].Value != nil {
			y = "~(" + g.cType(e, g.info.TypeOf(e)) + ")" + g.expr(e.Y, 14)
		}
	}
	text := x + " " + op + " " + y
	if p < prec {
		return "(" + text + ")"
	}
	return text
}

// count checks the right side of a shift of a t.
func (g *generator) count(e ast.Expr, t types.Type) {
	bits := int64(64)
	if b := t.Underlying().(*types.Basic); b.Kind() == types.Uint32 {
		bits = 32
	}
	if !g.bounded(e, bits) {
		g.refuse(e, "a shift count that may be %d or more: mask it", bits)
	}
}

// bounded reports whether an expression is seen to be less than n.
func (g *generator) bounded(e ast.Expr, n int64) bool {
	e = ast.Unparen(e)
	value := func(e ast.Expr) (int64, bool) {
		tv := g.info.Types[ast.Unparen(e)]
		if tv.Value == nil {
			return 0, false
		}
		return constant.Int64Val(constant.ToInt(tv.Value))
	}
	if v, ok := value(e); ok {
		return v >= 0 && v < n
	}
	if b, ok := e.(*ast.BinaryExpr); ok {
		if v, ok := value(b.Y); ok {
			return b.Op == token.AND && v >= 0 && v < n || b.Op == token.REM && v <= n
		}
	}
	return false
}

func (g *generator) divisor(e ast.Expr) {
	if tv := g.info.Types[ast.Unparen(e)]; tv.Value == nil || constant.Sign(tv.Value) <= 0 {
		g.refuse(e, "a divisor that is no constant above 0")
	}
}

func (g *generator) unary(e *ast.UnaryExpr) string {
	switch e.Op {
	case token.NOT:
		return "!" + g.expr(e.X, 14)
	case token.XOR:
		g.unsigned(e, g.info.TypeOf(e))
		return "~" + g.expr(e.X, 14)
	case token.AND:
		return g.address(e.X)
	}
	g.refuse(e, "unary %s", e.Op)
	return "?"
}

// address is &e: an array is its first element's address.
func (g *generator) address(e ast.Expr) string {
	e = ast.Unparen(e)
	if lit, ok := e.(*ast.CompositeLit); ok {
		g.refuse(lit, "the address of a literal")
		return "?"
	}
	var text string
	switch x := e.(type) {
	case *ast.SelectorExpr:
		text = g.field(x)
	case *ast.IndexExpr:
		text = g.index(x)
	default:
		text = g.expr(e, 14)
	}
	if _, ok := g.info.TypeOf(e).Underlying().(*types.Array); ok {
		return text
	}
	return "&" + text
}

// selector is x.f as a value.
func (g *generator) selector(e *ast.SelectorExpr) string {
	if g.info.Selections[e] == nil {
		g.refuse(e, "%s of another package", e.Sel.Name)
		return "?"
	}
	g.plain(e)
	return g.field(e)
}

// field is x.f, to be read, written or pointed to.
func (g *generator) field(e *ast.SelectorExpr) string {
	s := g.info.Selections[e]
	if s == nil || s.Kind() != types.FieldVal || len(s.Index()) != 1 {
		g.refuse(e, "%s, which is no field of that struct itself", e.Sel.Name)
		return "?"
	}
	if _, pointer := g.info.TypeOf(e.X).Underlying().(*types.Pointer); pointer {
		return g.expr(e.X, 14) + "->" + g.local(e.Sel)
	}
	if x, ok := ast.Unparen(e.X).(*ast.SelectorExpr); ok {
		return g.field(x) + "." + g.local(e.Sel)
	}
	if x, ok := ast.Unparen(e.X).(*ast.IndexExpr); ok {
		return g.index(x) + "." + g.local(e.Sel)
	}
	return g.expr(e.X, 14) + "." + g.local(e.Sel)
}

// index is an element of an array.
func (g *generator) index(e *ast.IndexExpr) string {
	t := g.info.TypeOf(e.X)
	if p, ok := t.Underlying().(*types.Pointer); ok {
		t = p.Elem()
	}
	array, ok := t.Underlying().(*types.Array)
	if !ok {
		g.refuse(e, "an index of anything but an array")
		return "?"
	}
	if !g.bounded(e.Index, array.Len()) {
		g.refuse(e.Index, "an index that may be %d or more: mask it", array.Len())
	}
	x := ast.Unparen(e.X)
	if sel, ok := x.(*ast.SelectorExpr); ok {
		return g.field(sel) + "[" + g.expr(e.Index, 0) + "]"
	}
	return g.expr(x, 14) + "[" + g.expr(e.Index, 0) + "]"
}

func (g *generator) composite(e *ast.CompositeLit) string {
	t := g.info.TypeOf(e)
	n, ok := t.(*types.Named)
	if !ok || g.shared[n.Obj()] {
		g.refuse(e, "a literal of anything but a struct of this process")
		return "?"
	}
	if _, ok := n.Underlying().(*types.Struct); !ok {
		g.refuse(e, "a literal of anything but a struct")
		return "?"
	}
	calls := 0
	var parts []string
	for _, elt := range e.Elts {
		kv, ok := elt.(*ast.KeyValueExpr)
		if !ok {
			g.refuse(elt, "a literal without the names of its fields")
			return "?"
		}
		if g.impure(kv.Value) {
			calls++
		}
		parts = append(parts, "."+g.local(kv.Key.(*ast.Ident))+" = "+g.expr(g.implicit(kv.Value), 0))
	}
	if calls > 1 {
		g.refuse(e, "two operands that call functions which read or write memory: C leaves their order open")
	}
	if parts == nil {
		parts = []string{"0"}
	}
	return "(" + g.cType(e, t) + "){" + strings.Join(parts, ", ") + "}"
}

// impure reports whether an expression calls a function that reads or writes memory.
func (g *generator) impure(e ast.Expr) (found bool) {
	ast.Inspect(e, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && !g.info.Types[call.Fun].IsType() && g.info.Types[ast.Expr(call)].Value == nil {
			if o := g.callee(call); !g.pure[o] && !(o != nil && o.Pkg() != nil && o.Pkg().Path() == "unsafe") {
				found = true
			}
		}
		return !found
	})
	return found
}

func (g *generator) call(e *ast.CallExpr, prec int) string {
	if g.info.Types[e.Fun].IsType() {
		return g.convert(e, prec)
	}
	o := g.callee(e)
	if b, ok := o.(*types.Builtin); ok {
		if b.Name() == "Add" {
			return "(uint8_t *)" + g.expr(e.Args[0], 14) + " + " + g.expr(e.Args[1], 10)
		}
		g.refuse(e, "the builtin %s", b.Name())
		return "?"
	}
	fn, ok := o.(*types.Func)
	if !ok {
		g.refuse(e, "a call of a function that is not known here")
		return "?"
	}
	if e.Ellipsis != 0 {
		g.refuse(e, "a variadic function")
	}
	name := ""
	byHand := false
	switch {
	case fn.Pkg() != nil && fn.Pkg().Path() == memPath:
		name = "pp__" + snake(fn.Name())
	case fn.Pkg() == g.types:
		name = g.function(fn)
		byHand = name != "" && g.externFunc(fn)
	}
	if name == "" {
		g.refuse(e, "a call of %s: it is in none of the files, and not //c:extern", fn.FullName())
		return "?"
	}
	calls := 0
	var args []string
	if sel, ok := ast.Unparen(e.Fun).(*ast.SelectorExpr); ok {
		if s := g.info.Selections[sel]; s != nil {
			if len(s.Index()) != 1 {
				g.refuse(sel, "a method of an embedded field")
			}
			args = append(args, g.receiver(sel, fn))
			if g.impure(sel.X) {
				calls++
			}
		}
	}
	for _, a := range e.Args {
		if g.impure(a) {
			calls++
		}
		if lit, ok := ast.Unparen(a).(*ast.BasicLit); ok && lit.Kind == token.STRING && byHand {
			args = append(args, lit.Value)
			continue
		}
		args = append(args, g.expr(g.implicit(a), 0))
	}
	if calls > 1 {
		g.refuse(e, "two operands that call functions which read or write memory: C leaves their order open")
	}
	return name + "(" + strings.Join(args, ", ") + ")"
}

// receiver is the first argument of a method.
func (g *generator) receiver(sel *ast.SelectorExpr, fn *types.Func) string {
	_, byPointer := fn.Signature().Recv().Type().(*types.Pointer)
	_, pointer := g.info.TypeOf(sel.X).Underlying().(*types.Pointer)
	switch {
	case byPointer && !pointer:
		return g.address(sel.X)
	case !byPointer && pointer:
		return "*" + g.expr(sel.X, 14)
	}
	return g.expr(sel.X, 0)
}

// bare strips the conversions that C does not need: between a named type of integers and what it is of.
func (g *generator) bare(e ast.Expr) ast.Expr {
	e = ast.Unparen(e)
	for g.info.Types[e].Value == nil {
		call, ok := e.(*ast.CallExpr)
		if !ok || !g.info.Types[call.Fun].IsType() {
			break
		}
		to, ok := g.info.TypeOf(call.Fun).Underlying().(*types.Basic)
		if !ok || to.Kind() == types.UnsafePointer || !types.Identical(to, g.info.TypeOf(call.Args[0]).Underlying()) {
			break
		}
		e = ast.Unparen(call.Args[0])
	}
	return e
}

func (g *generator) convert(e *ast.CallExpr, prec int) string {
	to, from := g.info.TypeOf(e.Fun), g.info.TypeOf(e.Args[0])
	integer := func(t types.Type) bool {
		b, ok := t.Underlying().(*types.Basic)
		return ok && b.Info()&(types.IsInteger|types.IsBoolean) != 0
	}
	pointer := func(t types.Type) bool {
		if _, ok := t.Underlying().(*types.Pointer); ok {
			return true
		}
		b, ok := t.Underlying().(*types.Basic)
		return ok && (b.Kind() == types.UnsafePointer || b.Kind() == types.UntypedNil)
	}
	if !(integer(to) && integer(from)) && !(pointer(to) && pointer(from)) {
		g.refuse(e, "a conversion from %s to %s", types.TypeString(from, types.RelativeTo(g.types)), types.TypeString(to, types.RelativeTo(g.types)))
		return "?"
	}
	name := g.cType(e, to)
	// C has one type where Go has a named one and what it is of: then the cast says nothing, and likewise between void and another pointer.
	if types.Identical(to.Underlying(), from.Underlying()) && integer(to) {
		return g.expr(e.Args[0], prec)
	}
	if name == "void *" {
		return g.expr(e.Args[0], prec)
	}
	inner := g.expr(e.Args[0], 12)
	if strings.HasPrefix(inner, "(uint8_t *)") { // a sum
		inner = "(" + inner + ")"
		inner = "(void *)" + inner
	}
	return "(" + name + ")" + inner
}
