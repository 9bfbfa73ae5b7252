#include "tensor/io/zip_reader.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>

#include "tensor/error.h"
#include "tensor/io/json_writer.h"

namespace eigentrace {

using namespace zip;

namespace {

uint64_t number_at(std::string_view bytes, size_t at, int width) {
  uint64_t value = 0;
  for (int i = 0; i < width; i++) value |= uint64_t(uint8_t(bytes[at + size_t(i)])) << 8 * i;
  return value;
}

}  // namespace

ZipReader::ZipReader(const std::string& path, const std::string& where, const std::string& kind)
    : file_(path), where_(where), kind_(kind) {
  find_directory();
  read_directory();
  check_overlaps();
}

void ZipReader::wrong(const std::string& text) const {
  fail(fmt::format("{}: {}; the file is cut, damaged or no {}", where_, text, kind_));
}

std::string ZipReader::bytes_at(uint64_t offset, uint64_t count, const char* what) const {
  if (offset > file_.size() || count > file_.size() - offset)
    wrong(fmt::format("{}: expected {} bytes at offset {}, found a file of {}", what, count, offset,
                      file_.size()));
  std::string bytes(size_t(count), '\0');
  file_.read_at(offset, bytes.data(), bytes.size());
  return bytes;
}

void ZipReader::find_directory() {
  const uint64_t tail_bytes = std::min<uint64_t>(file_.size(), end_bytes + 65535);
  const uint64_t tail_at = file_.size() - tail_bytes;
  const std::string tail = bytes_at(tail_at, tail_bytes, "end");
  size_t at = std::string::npos;
  for (size_t i = tail.size() < end_bytes ? 0 : tail.size() - end_bytes + 1; i-- > 0;)
    if (number_at(tail, i, 4) == end_signature && i + end_bytes + number_at(tail, i + 20, 2) == tail.size()) {
      at = i;
      break;
    }
  if (at == std::string::npos) wrong("expected a zip's end record, found none");
  count_ = number_at(tail, at + 10, 2);
  directory_bytes_ = number_at(tail, at + 12, 4);
  directory_at_ = number_at(tail, at + 16, 4);
  uint64_t end_at = tail_at + at;
  if (number_at(tail, at + 4, 2) != 0 && number_at(tail, at + 4, 2) != 0xFFFF)
    wrong("expected one volume, found several");
  const bool wide = count_ == 0xFFFF || directory_bytes_ == 0xFFFFFFFF || directory_at_ == 0xFFFFFFFF;
  if (wide && end_at >= locator_bytes) {
    const std::string locator = bytes_at(end_at - locator_bytes, locator_bytes, "ZIP64 locator");
    if (number_at(locator, 0, 4) == locator_signature) {
      const uint64_t end64_at = number_at(locator, 8, 8);
      const std::string end64 = bytes_at(end64_at, end64_bytes, "ZIP64 end record");
      if (number_at(end64, 0, 4) != end64_signature)
        wrong("expected a ZIP64 end record, found something else");
      count_ = number_at(end64, 32, 8);
      directory_bytes_ = number_at(end64, 40, 8);
      directory_at_ = number_at(end64, 48, 8);
      end_at = end64_at;
    }
  }
  if (directory_at_ > end_at || directory_bytes_ > end_at - directory_at_)
    wrong(fmt::format("directory: expected it before offset {}, found {} bytes at {}", end_at,
                      directory_bytes_, directory_at_));
  if (count_ > directory_bytes_ / central_bytes)
    wrong(fmt::format("directory: expected {} members, found room for {}", count_,
                      directory_bytes_ / central_bytes));
}

void ZipReader::read_directory() {
  const std::string directory = bytes_at(directory_at_, directory_bytes_, "directory");
  size_t at = 0;
  for (uint64_t i = 0; i < count_; i++) {
    const auto need = [&](size_t bytes) {
      if (bytes > directory.size() - at)
        wrong(fmt::format("directory: expected {} members, it ends inside number {}", count_, i + 1));
    };
    need(central_bytes);
    if (number_at(directory, at, 4) != central_signature)
      wrong(fmt::format("directory: expected {} members, found {}", count_, i));
    const uint64_t flags = number_at(directory, at + 8, 2), method = number_at(directory, at + 10, 2);
    ZipMember m;
    m.crc = uint32_t(number_at(directory, at + 16, 4));
    m.packed = number_at(directory, at + 20, 4);
    m.size = number_at(directory, at + 24, 4);
    m.offset = number_at(directory, at + 42, 4);
    const size_t name = number_at(directory, at + 28, 2), extra = number_at(directory, at + 30, 2),
                 note = number_at(directory, at + 32, 2);
    need(central_bytes + name + extra + note);
    m.name = directory.substr(at + central_bytes, name);
    read_zip64(m, std::string_view(directory).substr(at + central_bytes + name, extra));
    if (flags & 1)
      fail(fmt::format("{}: {}: expected no encryption, found some; unpack the file first", where_,
                       json_quoted(m.name)));
    if (method != 0 && method != 8)
      fail(fmt::format("{}: {}: compression: expected stored (0) or deflated (8), found method {}", where_,
                       json_quoted(m.name), method));
    m.deflated = method == 8;
    if (!m.deflated && m.packed != m.size)
      wrong(fmt::format("{}: expected a stored member's two sizes to agree, found {} and {}",
                        json_quoted(m.name), m.packed, m.size));
    // Deflate makes at most 1,032 bytes out of one.
    if (m.deflated && m.size / 1032 > m.packed)
      wrong(fmt::format("{}: size: expected at most 1032 times the {} packed bytes, found {}",
                        json_quoted(m.name), m.packed, m.size));
    members_.push_back(std::move(m));
    at += central_bytes + name + extra + note;
  }
  if (at != directory.size())
    wrong(fmt::format("directory: expected {} members in {} bytes, found more", count_, at));
}

void ZipReader::read_zip64(ZipMember& m, std::string_view extra) const {
  while (extra.size() >= 4) {
    const uint64_t kind = number_at(extra, 0, 2), bytes = number_at(extra, 2, 2);
    if (bytes > extra.size() - 4) break;
    std::string_view field = extra.substr(4, bytes);
    if (kind == 1)
      for (uint64_t* value : {&m.size, &m.packed, &m.offset})
        if (*value == 0xFFFFFFFF) {
          if (field.size() < 8)
            wrong(fmt::format("{}: ZIP64: expected 8 bytes for each long size, found fewer",
                              json_quoted(m.name)));
          *value = number_at(field, 0, 8);
          field.remove_prefix(8);
        }
    extra.remove_prefix(4 + bytes);
  }
}

/// Turns each offset into that of the packed bytes; two members on the same bytes are how small files
/// unpack to huge ones.
void ZipReader::check_overlaps() {
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (ZipMember& m : members_) {
    const std::string local = bytes_at(m.offset, local_bytes, "member");
    if (number_at(local, 0, 4) != local_signature)
      wrong(fmt::format("{}: expected a member at offset {}, found none", json_quoted(m.name), m.offset));
    const uint64_t name = number_at(local, 26, 2), extra = number_at(local, 28, 2), begin = m.offset;
    m.offset += local_bytes + name + extra;
    if (m.offset > directory_at_ || m.packed > directory_at_ - m.offset)
      wrong(fmt::format("{}: expected its {} bytes before the directory at {}, found them at {}",
                        json_quoted(m.name), m.packed, directory_at_, m.offset));
    if (bytes_at(begin + local_bytes, name, "member's name") != m.name)
      wrong(
          fmt::format("{}: expected the same name in the member and in the directory", json_quoted(m.name)));
    ranges.emplace_back(begin, m.offset + m.packed);
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); i++)
    if (ranges[i].first < ranges[i - 1].second)
      wrong(fmt::format("expected members apart, found two on offset {}", ranges[i].first));
}

std::string ZipReader::read(const ZipMember& member, uint64_t max_bytes) const {
  const std::string where = fmt::format("{}: {}", where_, json_quoted(member.name));
  if (member.size > max_bytes)
    fail(fmt::format("{}: expected at most {} bytes when unpacked, found {}", where, max_bytes, member.size));
  std::string bytes(size_t(member.size), '\0');
  ZipUnpacker in(file_, member, where);
  in.read(bytes.data(), bytes.size());
  in.finish();
  return bytes;
}

struct ZipUnpacker::Stream : z_stream {};

ZipUnpacker::ZipUnpacker(const InputFile& file, const ZipMember& member, const std::string& where)
    : file_(file), m_(member), where_(where), left_(member.packed) {
  if (!m_.deflated) return;
  z_ = new Stream{};
  if (inflateInit2(z_, -15) == Z_OK) return;
  delete z_;
  fail(where_ + ": zlib: expected memory for a stream");
}

ZipUnpacker::~ZipUnpacker() {
  if (z_) inflateEnd(z_);
  delete z_;
}

void ZipUnpacker::read(void* to, size_t bytes) {
  if (m_.deflated) {
    inflate_some(to, bytes);
  } else {
    file_.read_at(m_.offset + m_.packed - left_, to, bytes);
    left_ -= bytes;
  }
  crc_ = crc32(to, bytes, crc_);
}

void ZipUnpacker::finish() {
  Bytef more;
  if (m_.deflated && !ended_) {  // the end mark may still be due, but no byte
    z_->next_out = &more;
    z_->avail_out = 1;
    while (!ended_ && z_->avail_out == 1) step();
    if (z_->avail_out == 0)
      fail(where_ + ": expected no more bytes than its size says, found more; the file is damaged");
  }
  if (crc_ != m_.crc)
    fail(fmt::format("{}: checksum: expected {:08x}, found {:08x}; the file is damaged", where_, m_.crc,
                     crc_));
}

void ZipUnpacker::inflate_some(void* data, size_t bytes) {
  Bytef* to = static_cast<Bytef*>(data);
  while (bytes > 0) {
    const uInt n = uInt(std::min(bytes, size_t(1) << 30));
    z_->next_out = to;
    z_->avail_out = n;
    while (z_->avail_out > 0) {
      if (ended_)
        fail(where_ + ": expected as many bytes as its size says, found fewer; the file is damaged");
      step();
    }
    to += n;
    bytes -= n;
  }
}

void ZipUnpacker::step() {
  if (z_->avail_in == 0 && left_ > 0) {
    input_.resize(size_t(std::min<uint64_t>(left_, 1 << 16)));
    file_.read_at(m_.offset + m_.packed - left_, input_.data(), input_.size());
    left_ -= input_.size();
    z_->next_in = reinterpret_cast<Bytef*>(input_.data());
    z_->avail_in = uInt(input_.size());
  }
  const int code = ::inflate(z_, Z_NO_FLUSH);
  ended_ = code == Z_STREAM_END;
  if (!ended_ && code != Z_OK)
    fail(fmt::format("{}: expected deflated bytes, found {}; the file is damaged", where_,
                     z_->msg ? z_->msg : "an early end"));
}

}  // namespace eigentrace
