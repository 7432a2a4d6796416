package port

import (
	"bufio"
	"os"
	"os/exec"
	"testing"
)

// TestAddressesAreGivenOnce has several processes ask for addresses.
func TestAddressesAreGivenOnce(t *testing.T) {
	const processes, each = 4, 200
	if os.Getenv("KVORUM_ASK_FOR_PORTS") != "" {
		for range each {
			os.Stdout.WriteString(Free(t) + "\n")
		}
		os.Stdin.Read(make([]byte, 1)) // until all have asked
		return
	}

	given := map[string]bool{}
	for range processes {
		one := exec.Command(os.Args[0], "-test.run=^TestAddressesAreGivenOnce$")
		one.Env = append(os.Environ(), "KVORUM_ASK_FOR_PORTS=yes")
		leave, err := one.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		answers, err := one.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := one.Start(); err != nil {
			t.Fatal(err)
		}
		defer one.Wait()
		defer leave.Close()
		lines := bufio.NewScanner(answers)
		for range each {
			if !lines.Scan() {
				t.Fatalf("after %d addresses: %v", len(given), lines.Err())
			}
			if given[lines.Text()] {
				t.Errorf("%s was given twice", lines.Text())
			}
			given[lines.Text()] = true
		}
	}
}
