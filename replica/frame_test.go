package replica

import (
	"bytes"
	"testing"
)

func FuzzFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add(appendCommand(appendCommand(appendFrame(nil, Name{1, 2, 3}, 2), nil), []byte("b")))
	f.Add(appendFrame(nil, Name{1, 2, 3}, 1<<40))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, commands, err := decodeFrame(b, nil)
		if err != nil {
			return
		}
		again := appendFrame(nil, name, len(commands))
		for _, c := range commands {
			again = appendCommand(again, c)
		}
		// Numbers may have been encoded with more bytes than they need.
		name2, commands2, err := decodeFrame(again, nil)
		if err != nil || name2 != name || len(commands2) != len(commands) {
			t.Fatalf("%x: %v %v, then %v %v %v", b, name, commands, name2, commands2, err)
		}
		for i := range commands {
			if !bytes.Equal(commands[i], commands2[i]) {
				t.Fatalf("%x: command %d changed", b, i)
			}
		}
	})
}
