// SPDX-License-Identifier: BSD-3-Clause
// What a sync costs over the bare network with the real replica at the other end: its listener, checks, plain
// file on tmpfs, persistence domain `volatile`.
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "replication/namespace_op.h"
#include "replication/open_connection.h"
#include "replication/tcp_transport.h"
#include "server/data_listener.h"
#include "server/replica_volume.h"
#include "spdlog/spdlog.h"
#include "tests/bench/sync_bench.h"

namespace pmirror::bench {
namespace {

Deadline Soon() { return Deadline::After(std::chrono::seconds(10)); }

// A volume of its own on tmpfs, served on one CPU. Sessions are the daemon's: they may write every file.
class RealReplica : public Connector {
 public:
  explicit RealReplica(int cpu) : root_("/dev/shm/pmirror-bench-" + std::to_string(::getpid())) {
    PinTo(cpu);  // the listener's threads inherit it
    std::filesystem::create_directories(root_ + "/backing");
    std::filesystem::create_directories(root_ + "/state");
    server::ReplicaVolume::Options options;
    options.name = "bench";
    options.uuid[0] = std::byte{1};
    options.backing = root_ + "/backing";
    options.state_directory = root_ + "/state";
    options.domain = Domain::kVolatile;
    auto volume = server::ReplicaVolume::Open(options);
    Require(volume.ok(), "open the volume");
    volume_ = *std::move(volume);
    auto listener = server::DataListener::Start({.addresses = {"127.0.0.1:0"}}, {volume_.get()});
    Require(listener.ok(), "listen");
    listener_ = *std::move(listener);
  }
  ~RealReplica() override {
    listener_.reset();
    volume_.reset();
    std::filesystem::remove_all(root_);
  }

  Result<Connection> Connect(SessionId session, Sequence next_sequence, Deadline deadline) override {
    const auto permit = volume_->PrepareSession({.node = "bench",
                                                 .epoch = Epoch{1},
                                                 .kind = SessionKind::kDaemon,
                                                 .session = session,
                                                 .process = "bench",
                                                 .generation = 1,
                                                 .mount_number = 1});
    Require(permit.ok(), "prepare the session");
    auto socket = ConnectTcp(listener_->addresses()[0], deadline, kDefaultPathTimeout);
    if (!socket.ok()) {
      return socket.error();
    }
    const HelloTerms terms{.volume = volume_->options().uuid,
                           .ticket = permit->ticket,
                           .epoch = Epoch{1},
                           .session = permit->session,
                           .next_sequence = next_sequence};
    return ExchangeHello(std::move(socket.value()), terms, deadline);
  }

  Subject subject() {
    return {.connector = this, .file = kFile, .prepare = [](DataSession& session) { CreateFile(session); }};
  }

 private:
  static constexpr FileId kFile{1000};

  static void CreateFile(DataSession& session) {
    NamespaceOp op;
    op.kind = OpKind::kCreate;
    op.target = kFile;
    op.parent = FileId::kRoot;
    op.name = "file";
    op.mode = S_IFREG | 0644;
    std::vector<std::byte> payload;
    Encode(op, payload);
    FrameToSend frame;
    frame.kind = FrameKind::kNamespaceOp;
    frame.flags = kFlagAckWanted;
    frame.epoch = Epoch{1};
    frame.order = 1;
    frame.payload = payload;
    Receipt receipt;
    Require(session.Send(frame, Soon(), receipt) == SendStatus::kOk &&
                session.Await(receipt, WaitLevel::kReceived, nullptr, Soon()) == SendStatus::kOk,
            "create the file");
  }

  const std::string root_;
  std::unique_ptr<server::ReplicaVolume> volume_;
  std::unique_ptr<server::DataListener> listener_;
};

}  // namespace
}  // namespace pmirror::bench

int main() {
  spdlog::set_level(spdlog::level::err);
  pmirror::bench::CompareAll(
      "replica", [](int far_cpu) { return std::make_unique<pmirror::bench::RealReplica>(far_cpu); });
  return 0;
}
