//go:build !linux

package node

import "errors"

func lockMemory() error { return errors.ErrUnsupported }
