package cfdump

import (
	"errors"
	"fmt"
	"strings"
)

// dialect is whose dump it is: they differ in how a text is quoted.
type dialect int

const (
	mysql dialect = iota
	postgres
)

// value is one column of a row.
type value struct {
	text string
	null bool
}

// row is one row by its columns' names, in lower case.
type row map[string]value

// tables are the rows of the tables that were asked for, and which of them the
// dump makes at all.
type tables struct {
	rows    map[string][]row
	columns map[string][]string // in the order of CREATE TABLE
}

// scanner goes through a dump.
type scanner struct {
	text    string
	at      int
	dialect dialect
	wanted  map[string]bool
	tables
}

// ErrNoDump: the text is no dump that is understood.
var ErrNoDump = errors.New("neither a dump of mysqldump nor a plain one of pg_dump")

// scan reads the tables that are wanted out of a dump.
func scan(text string, wanted ...string) (tables, error) {
	s := &scanner{text: text, wanted: map[string]bool{}, tables: tables{rows: map[string][]row{}, columns: map[string][]string{}}}
	for _, w := range wanted {
		s.wanted[w] = true
	}
	head := text[:min(len(text), 4096)]
	switch {
	case strings.Contains(head, "-- PostgreSQL database"):
		s.dialect = postgres
	case strings.Contains(head, "-- MySQL dump"), strings.Contains(head, "-- MariaDB dump"):
	default:
		return tables{}, ErrNoDump
	}
	for {
		s.space()
		if s.at >= len(s.text) {
			return s.tables, nil
		}
		if s.mark(';') { // behind a comment that was a statement
			continue
		}
		if err := s.statement(); err != nil {
			line := 1 + strings.Count(s.text[:min(s.at, len(s.text))], "\n")
			return tables{}, fmt.Errorf("line %d: %w", line, err)
		}
	}
}

// space passes over blanks and comments. A command of psql's, at a line's start,
// is one, too.
func (s *scanner) space() {
	for s.at < len(s.text) {
		rest := s.text[s.at:]
		switch {
		case strings.IndexByte(" \t\r\n", rest[0]) >= 0:
			s.at++
		case strings.HasPrefix(rest, "--"), rest[0] == '#' && s.dialect == mysql, rest[0] == '\\' && (s.at == 0 || s.text[s.at-1] == '\n'):
			s.past("\n")
		case strings.HasPrefix(rest, "/*"):
			s.past("*/")
		default:
			return
		}
	}
}

// past goes on behind the next end, or to the end of everything.
func (s *scanner) past(end string) {
	i := strings.Index(s.text[s.at:], end)
	if i < 0 {
		s.at = len(s.text)
		return
	}
	s.at += i + len(end)
}

func (s *scanner) statement() error {
	switch {
	case s.words("CREATE", "TABLE"):
		return s.create()
	case s.words("INSERT", "INTO"):
		return s.insert()
	case s.words("COPY"):
		return s.copy()
	}
	return s.skip()
}

// skip passes over a statement, whatever is quoted in it.
func (s *scanner) skip() error {
	for s.at < len(s.text) {
		switch c := s.text[s.at]; c {
		case ';':
			s.at++
			return nil
		case '\'', '"', '`':
			if _, err := s.quoted(); err != nil {
				return err
			}
		case '$':
			s.dollar()
		case '-', '/':
			before := s.at
			s.space()
			if s.at == before {
				s.at++
			}
		default:
			s.at++
		}
	}
	return nil
}

// dollar passes over what PostgreSQL quotes as $tag$ … $tag$.
func (s *scanner) dollar() {
	end := strings.IndexByte(s.text[s.at+1:], '$')
	if s.dialect != postgres || end < 0 || strings.ContainsFunc(s.text[s.at+1:s.at+1+end], func(r rune) bool {
		return r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
	}) {
		s.at++
		return
	}
	tag := s.text[s.at : s.at+end+2]
	s.at += len(tag)
	s.past(tag)
}

// words goes past the words, in any case, if all of them come next.
func (s *scanner) words(words ...string) bool {
	at := s.at
	for _, w := range words {
		s.space()
		end := s.at + len(w)
		if end > len(s.text) || !strings.EqualFold(s.text[s.at:end], w) || end < len(s.text) && isName(s.text[end]) {
			s.at = at
			return false
		}
		s.at = end
	}
	return true
}

// mark goes past one character.
func (s *scanner) mark(c byte) bool {
	s.space()
	if s.at >= len(s.text) || s.text[s.at] != c {
		return false
	}
	s.at++
	return true
}

func isName(c byte) bool {
	return c == '_' || c == '$' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// word reads a bare word; "" where none comes next.
func (s *scanner) word() string {
	s.space()
	from := s.at
	for s.at < len(s.text) && isName(s.text[s.at]) {
		s.at++
	}
	return s.text[from:s.at]
}

// name reads a table's or column's name, the last part of a qualified one, in
// lower case.
func (s *scanner) name() (string, error) {
	for {
		s.space()
		var part string
		if s.at < len(s.text) && (s.text[s.at] == '"' || s.text[s.at] == '`') {
			var err error
			if part, err = s.quoted(); err != nil {
				return "", err
			}
		} else {
			part = s.word()
		}
		if part == "" {
			return "", errors.New("a name is missing")
		}
		if s.at < len(s.text) && s.text[s.at] == '.' {
			s.at++
			continue
		}
		return strings.ToLower(part), nil
	}
}

// names reads a list of names in parentheses.
func (s *scanner) names() (list []string, err error) {
	for {
		n, err := s.name()
		if err != nil {
			return nil, err
		}
		list = append(list, n)
		switch {
		case s.mark(','):
		case s.mark(')'):
			return list, nil
		default:
			return nil, errors.New("a list of columns does not end")
		}
	}
}

// quoted reads what stands between quotes. A backslash means itself but in
// MySQL's texts.
func (s *scanner) quoted() (string, error) {
	return s.unquote(s.dialect == mysql && s.text[s.at] != '`')
}

func (s *scanner) unquote(escapes bool) (string, error) {
	quote := s.text[s.at]
	var b strings.Builder
	for i := s.at + 1; i < len(s.text); i++ {
		switch c := s.text[i]; {
		case c == quote && i+1 < len(s.text) && s.text[i+1] == quote:
			b.WriteByte(quote)
			i++
		case c == quote:
			s.at = i + 1
			return b.String(), nil
		case c == '\\' && escapes && i+1 < len(s.text):
			i++
			b.WriteByte(unescape(s.text[i]))
		default:
			b.WriteByte(c)
		}
	}
	return "", errors.New("a quoted text does not end")
}

// unescape is the character that stands behind a backslash.
func unescape(c byte) byte {
	switch c {
	case '0':
		return 0
	case 'b':
		return '\b'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	case 'Z':
		return 26
	}
	return c
}
