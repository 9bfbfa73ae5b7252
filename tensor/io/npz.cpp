// .npz: a zip (APPNOTE.TXT 6.3) of .npy members.
#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <set>

#include "tensor/io/json_writer.h"
#include "tensor/io/npy.h"
#include "tensor/io/npy_header.h"

namespace eigentrace {
namespace {

constexpr uint32_t local_signature = 0x04034B50, central_signature = 0x02014B50, end_signature = 0x06054B50,
                   end64_signature = 0x06064B50, locator_signature = 0x07064B50;
constexpr size_t local_bytes = 30, central_bytes = 46, end_bytes = 22, end64_bytes = 56, locator_bytes = 20;

// --- writing -------------------------------------------------------------------------------------

/// A little-endian record in the making.
struct Record {
  std::string bytes;
  Record& put(uint64_t value, int width) {
    for (int i = 0; i < width; i++) bytes += char(value >> 8 * i & 255);
    return *this;
  }
};

struct Member {
  std::string name;
  uint32_t crc = 0;
  uint64_t packed = 0, size = 0, offset = 0;
  bool deflated = false;
};

/// The fields that local and central headers share, and the name; sizes that do not fit go into a ZIP64 extra
/// field.
void put_header(Record& record, const Member& m, bool central, uint64_t zip64_from) {
  const bool wide_sizes = m.packed >= zip64_from || m.size >= zip64_from,
             wide_offset = central && m.offset >= zip64_from;
  const int extra = wide_sizes || wide_offset ? 4 + (wide_sizes ? 16 : 0) + (wide_offset ? 8 : 0) : 0;
  const int version = extra ? 45 : 20;
  record.put(central ? central_signature : local_signature, 4);
  if (central) record.put(3 << 8 | version, 2);                       // made on Unix
  record.put(version, 2).put(1 << 11, 2).put(m.deflated ? 8 : 0, 2);  // names are UTF-8
  record.put(0, 2).put(1 << 5 | 1, 2);  // 1 January 1980: the same input gives the same bytes
  record.put(m.crc, 4).put(wide_sizes ? 0xFFFFFFFF : m.packed, 4).put(wide_sizes ? 0xFFFFFFFF : m.size, 4);
  record.put(m.name.size(), 2).put(extra, 2);
  if (central)
    record.put(0, 2)
        .put(0, 2)
        .put(0, 2)
        .put(uint64_t(0100644) << 16, 4)
        .put(wide_offset ? 0xFFFFFFFF : m.offset, 4);
  record.bytes += m.name;
  if (!extra) return;
  record.put(1, 2).put(extra - 4, 2);
  if (wide_sizes) record.put(m.size, 8).put(m.packed, 8);
  if (wide_offset) record.put(m.offset, 8);
}

/// Runs one direction of zlib over pieces, handing on what comes out.
struct Deflater {
  z_stream z{};
  Deflater() {
    if (deflateInit2(&z, 6, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY) != Z_OK)
      fail("write_npz: zlib: expected memory for a stream");
  }
  ~Deflater() { deflateEnd(&z); }
  void run(const void* data, size_t bytes, bool last, std::string& out) {
    const Bytef* from = static_cast<const Bytef*>(data);
    do {
      const size_t n = std::min(bytes, size_t(1) << 30);
      z.next_in = const_cast<Bytef*>(from);
      z.avail_in = uInt(n);
      from += n;
      bytes -= n;
      char block[1 << 16];
      do {
        z.next_out = reinterpret_cast<Bytef*>(block);
        z.avail_out = sizeof block;
        deflate(&z, last && bytes == 0 ? Z_FINISH : Z_NO_FLUSH);
        out.append(block, sizeof block - z.avail_out);
      } while (z.avail_out == 0);
    } while (bytes > 0);
  }
};

// --- reading -------------------------------------------------------------------------------------

uint64_t number_at(std::string_view bytes, size_t at, int width) {
  uint64_t value = 0;
  for (int i = 0; i < width; i++) value |= uint64_t(uint8_t(bytes[at + size_t(i)])) << 8 * i;
  return value;
}

class NpzReader {
 public:
  NpzReader(const std::string& path, uint64_t max_bytes)
      : file_(path), where_("read_npz: " + path), left_(max_bytes) {}

  std::map<std::string, HostArray> read() {
    find_directory();
    read_directory();
    check_overlaps();
    std::map<std::string, HostArray> arrays;
    for (const Member& m : members_) {
      if (m.name.size() <= 4 || !m.name.ends_with(".npy"))
        fail(fmt::format("{}: expected members named *.npy, found {}", where_, json_quoted(m.name)));
      const std::string name = m.name.substr(0, m.name.size() - 4);
      if (arrays.count(name))
        fail(fmt::format("{}: expected each name once, found {} twice", where_, json_quoted(name)));
      arrays.emplace(name, unpack(m));
    }
    return arrays;
  }

 private:
  [[noreturn]] void wrong(const std::string& text) const {
    fail(fmt::format("{}: {}; the file is cut, damaged or no .npz", where_, text));
  }

  std::string bytes_at(uint64_t offset, uint64_t count, const char* what) const {
    if (offset > file_.size() || count > file_.size() - offset)
      wrong(fmt::format("{}: expected {} bytes at offset {}, found a file of {}", what, count, offset,
                        file_.size()));
    std::string bytes(size_t(count), '\0');
    file_.read_at(offset, bytes.data(), bytes.size());
    return bytes;
  }

  void find_directory() {
    const uint64_t tail_bytes = std::min<uint64_t>(file_.size(), end_bytes + 65535);
    const uint64_t tail_at = file_.size() - tail_bytes;
    const std::string tail = bytes_at(tail_at, tail_bytes, "end");
    size_t at = std::string::npos;
    for (size_t i = tail.size() < end_bytes ? 0 : tail.size() - end_bytes + 1; i-- > 0;)
      if (number_at(tail, i, 4) == end_signature &&
          i + end_bytes + number_at(tail, i + 20, 2) == tail.size()) {
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

  void read_directory() {
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
      Member m;
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

  void read_zip64(Member& m, std::string_view extra) const {
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
  void check_overlaps() {
    std::vector<std::pair<uint64_t, uint64_t>> ranges;
    for (Member& m : members_) {
      const std::string local = bytes_at(m.offset, local_bytes, "member");
      if (number_at(local, 0, 4) != local_signature)
        wrong(fmt::format("{}: expected a member at offset {}, found none", json_quoted(m.name), m.offset));
      const uint64_t name = number_at(local, 26, 2), extra = number_at(local, 28, 2), begin = m.offset;
      m.offset += local_bytes + name + extra;
      if (m.offset > directory_at_ || m.packed > directory_at_ - m.offset)
        wrong(fmt::format("{}: expected its {} bytes before the directory at {}, found them at {}",
                          json_quoted(m.name), m.packed, directory_at_, m.offset));
      if (bytes_at(begin + local_bytes, name, "member's name") != m.name)
        wrong(fmt::format("{}: expected the same name in the member and in the directory",
                          json_quoted(m.name)));
      ranges.emplace_back(begin, m.offset + m.packed);
    }
    std::sort(ranges.begin(), ranges.end());
    for (size_t i = 1; i < ranges.size(); i++)
      if (ranges[i].first < ranges[i - 1].second)
        wrong(fmt::format("expected members apart, found two on offset {}", ranges[i].first));
  }

  HostArray unpack(const Member& m) {
    const std::string where = fmt::format("{}: {}", where_, json_quoted(m.name));
    if (m.size > left_)
      fail(fmt::format("{}: expected at most {} more bytes when unpacked, found {}", where, left_, m.size));
    left_ -= m.size;
    Unpacker in(file_, m, where);
    std::string start(size_t(std::min<uint64_t>(m.size, 12)), '\0');
    in.read(start.data(), start.size());
    const size_t header_bytes = npy_header_bytes(start, where), begun = start.size();
    if (header_bytes > m.size)
      fail(fmt::format("{}: header: expected {} bytes, found {}; the file is damaged", where, header_bytes,
                       m.size));
    start.resize(std::max(header_bytes, begun));
    in.read(start.data() + begun, start.size() - begun);
    const NpyHeader header = parse_npy_header(start, where);
    if (m.size - header.bytes != header.data_bytes)
      fail(fmt::format("{}: data: expected {} bytes ({} of {}), found {}; the file is damaged", where,
                       header.data_bytes, shape_text(header.shape), name_of(header.dtype),
                       m.size - header.bytes));
    HostArray array(header.dtype, header.shape);
    in.read(array.bytes.data(), array.bytes.size());
    in.finish();
    if (header.fortran_order) make_row_major(array);
    return array;
  }

  /// A member's bytes in order, inflated where needed, with their checksum.
  class Unpacker {
   public:
    Unpacker(const InputFile& file, const Member& m, const std::string& where)
        : file_(file), m_(m), where_(where), left_(m.packed) {
      if (m.deflated && inflateInit2(&z_, -15) != Z_OK) fail(where + ": zlib: expected memory for a stream");
    }
    ~Unpacker() {
      if (m_.deflated) inflateEnd(&z_);
    }
    void read(void* to, size_t bytes) {
      if (m_.deflated) {
        inflate_some(static_cast<Bytef*>(to), bytes);
      } else {
        file_.read_at(m_.offset + m_.packed - left_, to, bytes);
        left_ -= bytes;
      }
      crc_ = crc32(to, bytes, crc_);
    }
    void finish() {
      Bytef more;
      if (m_.deflated && !ended_) {  // the end mark may still be due, but no byte
        z_.next_out = &more;
        z_.avail_out = 1;
        while (!ended_ && z_.avail_out == 1) step();
        if (z_.avail_out == 0)
          fail(where_ + ": expected no more bytes than its size says, found more; the file is damaged");
      }
      if (crc_ != m_.crc)
        fail(fmt::format("{}: checksum: expected {:08x}, found {:08x}; the file is damaged", where_, m_.crc,
                         crc_));
    }

   private:
    void inflate_some(Bytef* to, size_t bytes) {
      while (bytes > 0) {
        const uInt n = uInt(std::min(bytes, size_t(1) << 30));
        z_.next_out = to;
        z_.avail_out = n;
        while (z_.avail_out > 0) {
          if (ended_)
            fail(where_ + ": expected as many bytes as its size says, found fewer; the file is damaged");
          step();
        }
        to += n;
        bytes -= n;
      }
    }
    void step() {
      if (z_.avail_in == 0 && left_ > 0) {
        input_.resize(size_t(std::min<uint64_t>(left_, 1 << 16)));
        file_.read_at(m_.offset + m_.packed - left_, input_.data(), input_.size());
        left_ -= input_.size();
        z_.next_in = reinterpret_cast<Bytef*>(input_.data());
        z_.avail_in = uInt(input_.size());
      }
      const int code = ::inflate(&z_, Z_NO_FLUSH);
      ended_ = code == Z_STREAM_END;
      if (!ended_ && code != Z_OK)
        fail(fmt::format("{}: expected deflated bytes, found {}; the file is damaged", where_,
                         z_.msg ? z_.msg : "an early end"));
    }
    const InputFile& file_;
    const Member& m_;
    const std::string& where_;
    uint64_t left_;
    z_stream z_{};
    std::string input_;
    bool ended_ = false;
    uint32_t crc_ = 0;
  };

  InputFile file_;
  std::string where_;
  uint64_t left_, count_ = 0, directory_bytes_ = 0, directory_at_ = 0;
  std::vector<Member> members_;
};

}  // namespace

void write_npz(const std::string& path, const std::vector<std::pair<std::string, HostView>>& arrays,
               const NpzOptions& options) {
  std::set<std::string> names;
  uint64_t expected = 0;
  for (const auto& [name, array] : arrays) {
    if (name.empty() || name.size() > 65531 || !is_utf8(name) || !names.insert(name).second)
      fail(fmt::format("write_npz: {}: name: expected UTF-8 of 1 to 65,531 bytes, each once; found {}", path,
                       json_quoted(name.substr(0, 80))));
    if (!options.deflate) expected += array.bytes.size() + 2 * name.size() + 300;
  }
  write_atomically(
      path,
      [&](FileWriter& file) {
        Record directory;
        for (const auto& [name, array] : arrays) {
          const std::string header = npy_header(array);
          Member m{name + ".npy",
                   crc32(header.data(), header.size()),
                   0,
                   header.size() + array.bytes.size(),
                   file.size(),
                   options.deflate};
          m.crc = crc32(array.bytes.data(), array.bytes.size(), m.crc);
          std::string packed;
          if (options.deflate) {
            Deflater deflater;
            deflater.run(header.data(), header.size(), false, packed);
            deflater.run(array.bytes.data(), array.bytes.size(), true, packed);
          }
          m.packed = options.deflate ? packed.size() : m.size;
          Record local;
          put_header(local, m, false, options.zip64_from);
          put_header(directory, m, true, options.zip64_from);
          file.write(local.bytes);
          if (options.deflate) {
            file.write(packed);
          } else {
            file.write(header);
            file.write(array.bytes);
          }
        }
        const uint64_t at = file.size(), bytes = directory.bytes.size(), count = arrays.size();
        Record end;
        const bool wide = at >= options.zip64_from || bytes >= options.zip64_from ||
                          count >= std::min<uint64_t>(0xFFFF, options.zip64_from);
        if (wide) {
          end.put(end64_signature, 4)
              .put(end64_bytes - 12, 8)
              .put(3 << 8 | 45, 2)
              .put(45, 2)
              .put(0, 4)
              .put(0, 4);
          end.put(count, 8).put(count, 8).put(bytes, 8).put(at, 8);
          end.put(locator_signature, 4).put(0, 4).put(at + bytes, 8).put(1, 4);
        }
        end.put(end_signature, 4).put(0, 2).put(0, 2);
        for (int i = 0; i < 2; i++) end.put(wide ? 0xFFFF : count, 2);
        end.put(wide ? 0xFFFFFFFF : bytes, 4).put(wide ? 0xFFFFFFFF : at, 4).put(0, 2);
        file.write(directory.bytes);
        file.write(end.bytes);
      },
      expected);
}

std::map<std::string, HostArray> read_npz(const std::string& path, uint64_t max_bytes) {
  return NpzReader(path, max_bytes).read();
}

}  // namespace eigentrace
