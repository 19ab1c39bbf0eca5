package packet

// IPv4 options, RFC 791 section 3.1. The first bit of an option says that every
// fragment carries it.
const (
	optionEnd         = 0
	optionNop         = 1
	optionCopied      = 0x80
	optionLooseSource = 131
	optionStrictRoute = 137
)

// checkOptions walks the options of an IPv4 header. It says whether one of them is
// a source route, and whether they are whole.
func checkOptions(o []byte) (sourceRoute, ok bool) {
	for len(o) > 0 {
		switch o[0] {
		case optionEnd:
			return sourceRoute, true
		case optionNop:
			o = o[1:]
			continue
		case optionLooseSource, optionStrictRoute:
			sourceRoute = true
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return sourceRoute, false
		}
		o = o[o[1]:]
	}
	return sourceRoute, true
}

// blankUncopied makes no-ops of the options that only a first fragment carries.
func blankUncopied(o []byte) {
	for len(o) > 0 && o[0] != optionEnd {
		n := 1
		if o[0] != optionNop {
			n = int(o[1])
		}
		if o[0]&optionCopied == 0 {
			for i := range n {
				o[i] = optionNop
			}
		}
		o = o[n:]
	}
}
