package replica

import (
	"encoding/binary"
	"errors"
)

// A batch is what one entry of the log carries: the commands that waited at
// one member when it was proposed. Its name tells that member, and nobody
// else, who waits for the results:
//
//	version 1, origin 8, incarnation uvarint, number uvarint,
//	count uvarint, then each command: length uvarint, bytes
//
// A name is used once in the life of a cluster, so a batch that commits long
// after it was given up still finds those who wait for it, and no other.
const frameVersion = 1

// Name identifies a batch: the member that proposed it, the run of that member
// and the number within that run.
type Name struct {
	Origin, Incarnation, Number uint64
}

var errFrame = errors.New("replica: the entry is not a batch of commands")

// appendFrame starts a batch of count commands.
func appendFrame(b []byte, name Name, count int) []byte {
	b = append(b, frameVersion)
	b = binary.LittleEndian.AppendUint64(b, name.Origin)
	b = binary.AppendUvarint(b, name.Incarnation)
	b = binary.AppendUvarint(b, name.Number)
	return binary.AppendUvarint(b, uint64(count))
}

func appendCommand(b, command []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(command)))
	return append(b, command...)
}

// decodeFrame appends the commands of a batch to commands. They share b's bytes.
func decodeFrame(b []byte, commands [][]byte) (Name, [][]byte, error) {
	var name Name
	if len(b) < 9 || b[0] != frameVersion {
		return name, commands, errFrame
	}
	name.Origin = binary.LittleEndian.Uint64(b[1:])
	b = b[9:]

	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			b = nil
			return ^uint64(0) // more than any length
		}
		b = b[n:]
		return v
	}
	name.Incarnation = next()
	name.Number = next()
	count := next()
	if count > uint64(len(b)) { // each command takes a byte at least
		return name, commands, errFrame
	}
	for range count {
		size := next()
		if size > uint64(len(b)) {
			return name, commands, errFrame
		}
		commands = append(commands, b[:size:size])
		b = b[size:]
	}
	if len(b) != 0 {
		return name, commands, errFrame
	}
	return name, commands, nil
}
