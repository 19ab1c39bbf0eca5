package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"text/tabwriter"
)

// Figure is what came out for one metric: medians over a number of runs.
type Figure struct {
	Scenario string   `json:"scenario"`
	Metric   string   `json:"metric"`
	Unit     string   `json:"unit"`
	Ours     float64  `json:"ours"`
	Peer     *float64 `json:"peer"` // null: held against nothing
	PeerName string   `json:"peer_name"`
	Ratio    *float64 `json:"ratio"` // ours over the peer's
	Runs     int      `json:"runs"`  // of each side
}

// Median is the middle value, or the mean of the two middle ones.
func Median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	if n == 0 {
		return 0
	}
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// Percentile is the least value that at least p percent of the values do not exceed.
func Percentile(values []float64, p float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if len(s) == 0 {
		return 0
	}
	i := int(p/100*float64(len(s))+0.9999999) - 1
	return s[min(max(i, 0), len(s)-1)]
}

// sink shows figures as they come.
type sink interface {
	figure(f Figure, b Bar) error
	note(text string)
	close() error
}

// lines is one JSON object a line; notes go elsewhere.
type lines struct{ out, notes io.Writer }

func (l lines) figure(f Figure, _ Bar) error { return json.NewEncoder(l.out).Encode(f) }
func (l lines) note(text string)             { fmt.Fprintln(l.notes, "#", text) }
func (l lines) close() error                 { return nil }

// table is for people: notes at once, figures at the end, under each other.
type table struct {
	out  io.Writer
	rows []string
}

func (t *table) figure(f Figure, b Bar) error {
	peer, ratio := "", ""
	if f.Peer != nil {
		peer = number(*f.Peer)
	}
	if f.Ratio != nil {
		ratio = number(*f.Ratio)
	}
	row := fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d", f.Scenario, f.Metric, f.Unit, number(f.Ours),
		peer, ratio, b, b.verdict(f), f.PeerName, f.Runs)
	t.rows = append(t.rows, row)
	_, err := fmt.Fprintf(t.out, "%s %s: %s %s\n", f.Scenario, f.Metric, number(f.Ours), f.Unit)
	return err
}

func (t *table) note(text string) { fmt.Fprintln(t.out, "#", text) }

func (t *table) close() error {
	if len(t.rows) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nscenario\tmetric\tunit\tours\tpeer\tratio\tbar\t\tpeer is\truns")
	for _, r := range t.rows {
		fmt.Fprintln(w, r)
	}
	return w.Flush()
}

// number has three digits that mean something.
func number(v float64) string {
	if v >= 1000 || v <= -1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}
