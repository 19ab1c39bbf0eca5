package cfdump

import (
	"errors"
	"fmt"
	"strings"
)

// create notes the order of a table's columns.
func (s *scanner) create() error {
	if s.words("IF", "NOT", "EXISTS") {
		// mysqldump writes it on request
	}
	table, err := s.name()
	if err != nil {
		return err
	}
	if !s.wanted[table] {
		return s.skip()
	}
	if !s.mark('(') {
		return fmt.Errorf("table %s: no columns", table)
	}
	var columns []string
	for {
		s.space()
		bare := s.at < len(s.text) && s.text[s.at] != '"' && s.text[s.at] != '`'
		column, err := s.name()
		if err != nil {
			return fmt.Errorf("table %s: %w", table, err)
		}
		switch key := strings.ToUpper(column); {
		case bare && (key == "PRIMARY" || key == "UNIQUE" || key == "KEY" || key == "CONSTRAINT" || key == "INDEX" || key == "FOREIGN" || key == "CHECK" || key == "FULLTEXT"):
			// no column
		default:
			columns = append(columns, column)
		}
		more, err := s.clause()
		if err != nil {
			return fmt.Errorf("table %s: %w", table, err)
		}
		if !more {
			s.columns[table] = columns
			return s.skip()
		}
	}
}

// clause passes over the rest of a column's definition; more is false at the end
// of the table's.
func (s *scanner) clause() (more bool, err error) {
	depth := 0
	for s.at < len(s.text) {
		switch s.text[s.at] {
		case '(':
			depth++
			s.at++
		case ')':
			s.at++
			if depth == 0 {
				return false, nil
			}
			depth--
		case ',':
			s.at++
			if depth == 0 {
				return true, nil
			}
		case '\'', '"', '`':
			if _, err := s.quoted(); err != nil {
				return false, err
			}
		default:
			s.at++
		}
	}
	return false, errors.New("the definition does not end")
}

// insert reads the rows of INSERT INTO table [(columns)] VALUES (…),(…).
func (s *scanner) insert() error {
	table, err := s.name()
	if err != nil {
		return err
	}
	if !s.wanted[table] {
		return s.skip()
	}
	columns := s.columns[table]
	if s.mark('(') {
		if columns, err = s.names(); err != nil {
			return fmt.Errorf("table %s: %w", table, err)
		}
	}
	if s.words("OVERRIDING", "SYSTEM", "VALUE") {
		// an identity's own
	}
	if !s.words("VALUES") {
		return fmt.Errorf("table %s: INSERT without VALUES", table)
	}
	if len(columns) == 0 {
		return fmt.Errorf("table %s: the order of its columns is not known: the dump must have its CREATE TABLE", table)
	}
	for {
		if !s.mark('(') {
			return fmt.Errorf("table %s: a row is missing", table)
		}
		r := row{}
		for n := 0; ; n++ {
			v, err := s.value()
			if err != nil {
				return fmt.Errorf("table %s: %w", table, err)
			}
			if n >= len(columns) {
				return fmt.Errorf("table %s: a row has more than its %d columns", table, len(columns))
			}
			r[columns[n]] = v
			if s.mark(',') {
				continue
			}
			if !s.mark(')') || n+1 != len(columns) {
				return fmt.Errorf("table %s: a row has not its %d columns", table, len(columns))
			}
			break
		}
		s.rows[table] = append(s.rows[table], r)
		if !s.mark(',') {
			return s.skip()
		}
	}
}

// value reads one value of a row.
func (s *scanner) value() (value, error) {
	s.space()
	if s.at >= len(s.text) {
		return value{}, errors.New("a row does not end")
	}
	if s.text[s.at] == '\'' {
		text, err := s.quoted()
		return value{text: text}, err
	}
	from := s.at
	for s.at < len(s.text) && (isName(s.text[s.at]) || strings.IndexByte("+-.", s.text[s.at]) >= 0) {
		s.at++
	}
	bare := s.text[from:s.at]
	switch {
	case strings.EqualFold(bare, "NULL"):
		return value{null: true}, nil
	case bare != "" && s.at < len(s.text) && s.text[s.at] == '\'': // a charset, as _binary 'x'; E'x'
		text, err := s.unquote(s.dialect == mysql || strings.EqualFold(bare, "E"))
		return value{text: text}, err
	case strings.HasPrefix(bare, "_"):
		s.space()
		if s.at < len(s.text) && s.text[s.at] == '\'' {
			text, err := s.quoted()
			return value{text: text}, err
		}
	case bare != "":
		return value{text: bare}, nil
	}
	return value{}, fmt.Errorf("%.20q is no value", s.text[from:])
}

// copy reads the rows of pg_dump's COPY table (columns) FROM stdin.
func (s *scanner) copy() error {
	table, err := s.name()
	if err != nil {
		return err
	}
	if !s.mark('(') {
		return fmt.Errorf("table %s: COPY without its columns", table)
	}
	columns, err := s.names()
	if err != nil {
		return fmt.Errorf("table %s: %w", table, err)
	}
	if !s.words("FROM", "stdin") {
		return s.skip()
	}
	s.past("\n")
	for {
		if s.at >= len(s.text) {
			return fmt.Errorf("table %s: its rows do not end", table)
		}
		from := s.at
		s.past("\n")
		line := strings.TrimRight(s.text[from:s.at], "\r\n")
		if line == `\.` {
			return nil
		}
		if !s.wanted[table] {
			continue
		}
		fields := strings.Split(line, "\t")
		if len(fields) != len(columns) {
			return fmt.Errorf("table %s: a row has %d columns, not %d", table, len(fields), len(columns))
		}
		r := row{}
		for n, f := range fields {
			r[columns[n]] = copied(f)
		}
		s.rows[table] = append(s.rows[table], r)
	}
}

// copied is a field of COPY's text format.
func copied(f string) value {
	if f == `\N` {
		return value{null: true}
	}
	if !strings.Contains(f, `\`) {
		return value{text: f}
	}
	var b strings.Builder
	for i := 0; i < len(f); i++ {
		if f[i] == '\\' && i+1 < len(f) {
			i++
			b.WriteByte(unescape(f[i]))
			continue
		}
		b.WriteByte(f[i])
	}
	return value{text: b.String()}
}
