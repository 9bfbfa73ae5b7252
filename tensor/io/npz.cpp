// .npz: a zip (APPNOTE.TXT 6.3) of .npy members.
#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <set>

#include "tensor/io/json_writer.h"
#include "tensor/io/npy.h"
#include "tensor/io/npy_header.h"
#include "tensor/io/zip_reader.h"

namespace eigentrace {

using namespace zip;

namespace {

// --- writing -------------------------------------------------------------------------------------

/// A little-endian record in the making.
struct Record {
  std::string bytes;
  Record& put(uint64_t value, int width) {
    for (int i = 0; i < width; i++) bytes += char(value >> 8 * i & 255);
    return *this;
  }
};

/// The fields that local and central headers share, and the name; sizes that do not fit go into a ZIP64 extra
/// field.
void put_header(Record& record, const ZipMember& m, bool central, uint64_t zip64_from) {
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

class NpzReader {
 public:
  NpzReader(const std::string& path, uint64_t max_bytes)
      : where_("read_npz: " + path), zip_(path, where_, ".npz"), left_(max_bytes) {}

  std::map<std::string, HostArray> read() {
    std::map<std::string, HostArray> arrays;
    for (const ZipMember& m : zip_.members()) {
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
  HostArray unpack(const ZipMember& m) {
    const std::string where = fmt::format("{}: {}", where_, json_quoted(m.name));
    if (m.size > left_)
      fail(fmt::format("{}: expected at most {} more bytes when unpacked, found {}", where, left_, m.size));
    left_ -= m.size;
    ZipUnpacker in(zip_.file(), m, where);
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

  std::string where_;
  ZipReader zip_;
  uint64_t left_;
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
          ZipMember m{name + ".npy",
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
