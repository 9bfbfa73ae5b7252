#pragma once
// metrics.jsonl as TensorBoard reads it: an event file beside it, appended to as rows are logged.
#include <memory>
#include <string>
#include <vector>

#include "tensor/io/file.h"
#include "tools/run_folder.h"

namespace eigentrace {

/// One record of a TFRecord file: u64 length, masked CRC-32C of it, payload, masked CRC-32C of that; little
/// endian.
std::string tfrecord(const std::string& payload);
/// A tensorflow.Event (protocol buffer) with one scalar a figure of the row: train/loss, validation/accuracy,
/// …
std::string scalar_event(double wall_time, const MetricsRow& row);
/// CRC-32C (Castagnoli).
uint32_t crc32c(const std::string& bytes);

class TensorboardFile {
 public:
  /// events.out.tfevents.eigentrace in the run's folder, begun anew with `rows`, which a resumed run has
  /// already.
  TensorboardFile(const RunFolder& folder, const std::vector<MetricsRow>& rows);
  void add(const MetricsRow& row);

 private:
  std::unique_ptr<AppendFile> file_;
};

}  // namespace eigentrace
