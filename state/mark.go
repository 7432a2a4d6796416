package state

import "math/bits"

// Mark is the checksum at one index.
type Mark struct {
	Index    Index
	Checksum uint64
}

// markLevels bounds how far apart two members can be and still share a mark.
const markLevels = 32

// marks remembers the checksum at the newest index that is divisible by 2^k
// and by no higher power, for each k. Of n indexes in a row at most one is
// divisible by a power that is n or more; so members that are n entries apart
// share an index less than 8n back, whatever n is and however they batched.
// Nothing of it is stored: a restart and a snapshot begin anew.
type marks [markLevels]Mark

func (m *marks) add(one Mark) { m[min(bits.TrailingZeros64(uint64(one.Index)), markLevels-1)] = one }

// Marks returns checksums at recent indexes, among them that of Index itself.
func (v *View) Marks() []Mark {
	all := []Mark{{v.Index, v.Checksum}}
	for _, m := range v.marks {
		if m.Index != 0 && m.Index != v.Index {
			all = append(all, m)
		}
	}
	return all
}
