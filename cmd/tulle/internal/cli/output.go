package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// print writes v as JSON where that is asked for, else what text writes.
func (p *program) print(v any, text func(w io.Writer)) error {
	if p.output == "json" {
		return printJSON(p.out, v)
	}
	text(p.out)
	return nil
}

// say writes a line for people; JSON output has none.
func (p *program) say(format string, args ...any) {
	if p.output != "json" {
		fmt.Fprintf(p.out, format+"\n", args...)
	}
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// table writes rows, the first of them the headings, in the cf CLI's layout:
// columns as wide as their widest cell and three spaces, the last as it is.
func table(w io.Writer, rows [][]string) {
	const gap = 3
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			row[i] = printable(cell)
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		last := len(row) - 1
		for i, cell := range row[:last] {
			line.WriteString(cell)
			line.WriteString(strings.Repeat(" ", widths[i]+gap-utf8.RuneCountInString(cell)))
		}
		line.WriteString(row[last])
		fmt.Fprintln(w, line.String())
	}
}

// printable takes what would move a terminal's cursor out of a name that
// somebody else chose.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// when is a time in a table; a time that is none is empty.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
