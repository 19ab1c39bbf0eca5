package egress

// workers are goroutines that stay: the ways through the stack are deep, and a new
// goroutine would grow and copy its small stack for every connection, a tenth of what
// one costs. A few wait for work; where none does, a new one is made.
type workers struct {
	work chan func()
	idle chan struct{} // has one for each that waits
	stop chan struct{}
}

// idleWorkers is how many wait at most.
const idleWorkers = 32

func newWorkers() *workers {
	return &workers{work: make(chan func()), idle: make(chan struct{}, idleWorkers), stop: make(chan struct{})}
}

// do has f done by a worker.
func (w *workers) do(f func()) {
	select {
	case w.work <- f:
	default:
		go w.be(f)
	}
}

// lend makes the calling goroutine, which has nothing else to do, a worker that does f
// first, if none waits.
func (w *workers) lend(f func()) {
	select {
	case w.work <- f:
	default:
		w.be(f)
	}
}

func (w *workers) be(f func()) {
	for {
		f()
		f = nil
		select {
		case w.idle <- struct{}{}:
		default:
			return
		}
		select {
		case f = <-w.work:
			<-w.idle
		case <-w.stop:
			return
		}
	}
}

// close lets those that wait end. What is under way is not waited for.
func (w *workers) close() { close(w.stop) }
