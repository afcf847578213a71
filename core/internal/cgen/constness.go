package cgen

import (
	"go/ast"
	"go/token"
	"go/types"
	"strings"
)

// constness finds the pointers through which a function only reads: C says const of them. A parameter stays const until something speaks
// against it, here or in a function that it is passed to.
func (g *generator) constness() {
	g.writes = map[types.Object]bool{}
	for changed := true; changed; {
		changed = false
		for o, d := range g.bodies {
			if d.Body == nil {
				continue
			}
			for _, p := range parameters(o.(*types.Func)) {
				if _, pointer := p.Type().Underlying().(*types.Pointer); pointer && !g.writes[p] && g.writesThrough(d.Body, p) {
					g.writes[p] = true
					changed = true
				}
			}
		}
	}
}

// parameters are those of a function, its receiver first.
func parameters(fn *types.Func) (all []*types.Var) {
	s := fn.Signature()
	if s.Recv() != nil {
		all = append(all, s.Recv())
	}
	for v := range s.Params().Variables() {
		all = append(all, v)
	}
	return all
}

// readOnly reports whether C can have const in front of the type of a parameter.
func (g *generator) readOnly(p types.Object) bool {
	_, pointer := p.Type().Underlying().(*types.Pointer)
	return pointer && !g.writes[p]
}

// writesThrough reports whether memory behind p may be written in a body.
func (g *generator) writesThrough(body *ast.BlockStmt, p *types.Var) (found bool) {
	var stack []ast.Node
	ast.Inspect(body, func(n ast.Node) bool {
		if n == nil {
			stack = stack[:len(stack)-1]
			return true
		}
		if id, ok := n.(*ast.Ident); ok && g.info.Uses[id] == p && g.mayWrite(id, stack) {
			found = true
		}
		stack = append(stack, n)
		return true
	})
	return found
}

// mayWrite looks at what is done with a use of a pointer; the stack has what it stands in.
func (g *generator) mayWrite(id *ast.Ident, stack []ast.Node) bool {
	var e ast.Expr = id
	behind := false // e is what the pointer points to, or a part of that
	for i := len(stack) - 1; i >= 0; i-- {
		switch up := stack[i].(type) {
		case *ast.ParenExpr:
			e = up
			continue
		case *ast.StarExpr:
			if behind {
				return false // a pointer that was read there
			}
			e, behind = up, true
			continue
		case *ast.IndexExpr:
			if up.X != e {
				return false
			}
			e, behind = up, true
			continue
		case *ast.SelectorExpr:
			s := g.info.Selections[up]
			if s == nil {
				return true
			}
			if s.Kind() == types.MethodVal {
				fn := s.Obj().(*types.Func)
				if _, byPointer := fn.Signature().Recv().Type().(*types.Pointer); !byPointer {
					return false
				}
				if _, pointer := g.info.TypeOf(e).Underlying().(*types.Pointer); pointer && behind {
					return false // another pointer, that was read there
				}
				return g.bodies[fn] == nil || !g.readOnly(parameters(fn)[0])
			}
			if _, pointer := g.info.TypeOf(e).Underlying().(*types.Pointer); pointer && behind {
				return false
			}
			e, behind = up, true
			continue
		case *ast.UnaryExpr:
			if up.Op != token.AND {
				return false
			}
			call, ok := stack[max(i-1, 0)].(*ast.CallExpr)
			return !ok || !g.argumentRead(call, up)
		case *ast.CallExpr:
			if behind {
				return false
			}
			return !g.argumentRead(up, e)
		case *ast.AssignStmt:
			for _, l := range up.Lhs {
				if l == e {
					return behind
				}
			}
			return !behind // the pointer itself is kept
		case *ast.IncDecStmt:
			return behind
		case *ast.BinaryExpr:
			return false
		default:
			return !behind
		}
	}
	return true
}

// argumentRead reports whether a function only reads through an argument.
func (g *generator) argumentRead(call *ast.CallExpr, arg ast.Expr) bool {
	fn, ok := g.callee(call).(*types.Func)
	if !ok {
		return false
	}
	if fn.Pkg() != nil && fn.Pkg().Path() == memPath {
		return strings.HasPrefix(fn.Name(), "Load")
	}
	for i, a := range call.Args {
		if ast.Unparen(a) == ast.Unparen(arg) && g.bodies[fn] != nil {
			return g.readOnly(fn.Signature().Params().At(i))
		}
	}
	return false
}
