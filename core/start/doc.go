// Package start starts processes and watches over them.
package start
