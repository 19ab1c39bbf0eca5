package demo

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Samples are the values of one reading of /metrics, by name and labels as
// they stand there: `tulle_drops_total{reason="no_policy"}`.
type Samples map[string]float64

// ReadMetrics reads http://address/metrics.
func ReadMetrics(ctx context.Context, address string) (Samples, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", req.URL, answer.Status)
	}
	samples := make(Samples)
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		line := lines.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		if v, err := strconv.ParseFloat(line[at+1:], 64); err == nil {
			samples[line[:at]] = v
		}
	}
	return samples, lines.Err()
}

// Sum adds all samples of one metric whose labels contain each of the given
// texts, for example `reason="no_policy"`.
func (s Samples) Sum(metric string, labels ...string) float64 {
	var sum float64
	for name, v := range s {
		if family(name) != metric {
			continue
		}
		if !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(name, l) }) {
			sum += v
		}
	}
	return sum
}

// Moved lists, in order, what is larger now than before.
func (s Samples) Moved(before Samples) []string {
	var moved []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if s[name] > before[name] {
			moved = append(moved, name)
		}
	}
	return moved
}

func family(sample string) string {
	name, _, _ := strings.Cut(sample, "{")
	return name
}
