package main

import (
	"fmt"
	"io"
	"log/slog"

	"google.golang.org/grpc/grpclog"
)

// grpcLog is where gRPC's libraries complain, mostly of clients that have hung
// up. That is nobody's fault, and told to those only who look for it.
type grpcLog struct {
	grpclog.LoggerV2 // takes what is no complaint, and drops it
	log              *slog.Logger
}

func newGRPCLog(log *slog.Logger) grpcLog {
	return grpcLog{grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard), log}
}

func (l grpcLog) Warning(args ...any)                 { l.log.Debug(fmt.Sprint(args...)) }
func (l grpcLog) Warningln(args ...any)               { l.log.Debug(fmt.Sprint(args...)) }
func (l grpcLog) Warningf(format string, args ...any) { l.log.Debug(fmt.Sprintf(format, args...)) }
func (l grpcLog) Error(args ...any)                   { l.log.Debug(fmt.Sprint(args...)) }
func (l grpcLog) Errorln(args ...any)                 { l.log.Debug(fmt.Sprint(args...)) }
func (l grpcLog) Errorf(format string, args ...any)   { l.log.Debug(fmt.Sprintf(format, args...)) }
