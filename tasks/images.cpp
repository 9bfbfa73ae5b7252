#include "tasks/images.h"

#include <fmt/format.h>
#include <png.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "tensor/error.h"

namespace eigentrace {

namespace {

// Inflates gzip data; grows as it goes and stops at `limit`, so that a small file cannot ask for all memory.
std::vector<uint8_t> gunzip(std::string_view bytes, const std::string& file, size_t limit) {
  z_stream stream{};
  if (inflateInit2(&stream, 16 + MAX_WBITS) != Z_OK) fail("gunzip: zlib cannot start");
  std::vector<uint8_t> out;
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  int state = Z_OK;
  while (state == Z_OK && out.size() <= limit) {
    const size_t before = out.size(), room = std::max<size_t>(1 << 16, before);
    out.resize(before + room);
    stream.next_out = out.data() + before, stream.avail_out = static_cast<uInt>(room);
    state = inflate(&stream, Z_NO_FLUSH);
    out.resize(before + room - stream.avail_out);
  }
  inflateEnd(&stream);
  if (state != Z_STREAM_END || out.size() > limit)
    fail(fmt::format(
        "{}: expected complete gzip data of at most {} bytes, found damaged, truncated or more; download "
        "the file again",
        file, limit));
  return out;
}

// Skilling, "Programming the Hilbert curve" (2004), for two dimensions: distance along the curve → (row,
// column).
std::pair<uint32_t, uint32_t> hilbert_point(uint32_t distance, int bits) {
  uint32_t x[2] = {0, 0};
  for (int b = 0; b < bits; ++b) {  // the bits of the distance alternate between the axes
    x[0] |= (distance >> (2 * b + 1) & 1) << b;
    x[1] |= (distance >> (2 * b) & 1) << b;
  }
  const uint32_t t = x[1] >> 1;  // Gray code
  x[1] ^= x[0];
  x[0] ^= t;
  for (uint32_t q = 2; q != 1u << bits; q <<= 1) {  // undo excess work
    const uint32_t p = q - 1;
    for (int i = 1; i >= 0; --i) {
      if (x[i] & q) {
        x[0] ^= p;
      } else {
        const uint32_t swap = (x[0] ^ x[i]) & p;
        x[0] ^= swap, x[i] ^= swap;
      }
    }
  }
  return {x[0], x[1]};
}

}  // namespace

void parse_cifar(std::string_view bytes, const std::string& file, ImageSet& out) {
  constexpr size_t kRecord = 3073;
  if (bytes.empty() || bytes.size() % kRecord != 0)
    fail(fmt::format(
        "{}: expected records of 3,073 bytes (10,000 of them, 30,730,000 bytes, in the published files), "
        "found {} bytes; the file is truncated or no CIFAR-10 binary file: unpack it again",
        file, bytes.size()));
  out.height = out.width = 32, out.channels = 3;
  const size_t records = bytes.size() / kRecord;
  out.pixels.reserve(out.pixels.size() + records * (kRecord - 1));
  for (size_t i = 0; i < records; ++i) {
    const auto* record = reinterpret_cast<const uint8_t*>(bytes.data()) + i * kRecord;
    if (record[0] > 9)
      fail(fmt::format(
          "{}: record {} (byte {}): expected a label from 0 to 9, found {}; the file is damaged or no "
          "CIFAR-10 binary file",
          file, i, i * kRecord, record[0]));
    out.labels.push_back(record[0]);
    out.pixels.insert(out.pixels.end(), record + 1, record + kRecord);
  }
}

std::vector<uint8_t> parse_idx(std::string_view bytes, const std::string& file,
                               std::span<const int64_t> dims) {
  std::vector<uint8_t> inflated;
  if (bytes.size() >= 2 && bytes[0] == '\x1f' && bytes[1] == '\x8b') {
    inflated = gunzip(bytes, file, size_t{1} << 30);
    bytes = {reinterpret_cast<const char*>(inflated.data()), inflated.size()};
  }
  const auto* s = reinterpret_cast<const uint8_t*>(bytes.data());
  const size_t rank = 1 + dims.size(), header = 4 + 4 * rank;
  if (bytes.size() < header || s[0] != 0 || s[1] != 0 || s[2] != 8 || s[3] != rank)
    fail(fmt::format(
        "{}: expected an IDX file of bytes with {} dimensions (it starts with 00 00 08 {:02x}), found "
        "{} bytes that start otherwise",
        file, rank, rank, bytes.size()));
  const auto size = [&](size_t d) {
    const uint8_t* b = s + 4 + 4 * d;
    return int64_t{b[0]} << 24 | b[1] << 16 | b[2] << 8 | b[3];
  };
  uint64_t total = static_cast<uint64_t>(size(0));
  for (size_t d = 1; d < rank; ++d) {
    if (size(d) != dims[d - 1])
      fail(fmt::format("{}: dimension {}: expected {}, found {}", file, d, dims[d - 1], size(d)));
    total *= static_cast<uint64_t>(size(d));
  }
  if (bytes.size() - header != total)
    fail(fmt::format(
        "{}: expected {} bytes of data as the header says, found {}; the file is truncated or has a tail",
        file, total, bytes.size() - header));
  return {s + header, s + bytes.size()};
}

std::vector<uint8_t> parse_png(std::string_view bytes, const std::string& file, int64_t height,
                               int64_t width) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  const auto damaged = [&] {
    const std::string reason = image.message;
    png_image_free(&image);
    fail(fmt::format("{}: expected a PNG image, found {} bytes that cannot be read as one ({})", file,
                     bytes.size(), reason));
  };
  if (bytes.empty()) fail(fmt::format("{}: expected a PNG image, found an empty file", file));
  if (png_image_begin_read_from_memory(&image, bytes.data(), bytes.size()) == 0) damaged();
  if (image.height != height || image.width != width || image.format != PNG_FORMAT_GRAY) {
    const std::string found = fmt::format("{} x {}, format {}", image.width, image.height, image.format);
    png_image_free(&image);
    fail(fmt::format(
        "{}: expected an 8-bit grey PNG of {} x {} pixels, found {} (0 is grey, 2 colour, 1 adds alpha)",
        file, width, height, found));
  }
  std::vector<uint8_t> pixels(static_cast<size_t>(height * width));
  if (png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr) == 0) damaged();
  return pixels;
}

std::string write_png(std::span<const uint8_t> pixels, int64_t height, int64_t width) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(width), image.height = static_cast<png_uint_32>(height);
  image.format = PNG_FORMAT_GRAY;
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
  std::string out(size, '\0');
  if (png_image_write_to_memory(&image, out.data(), &size, 0, pixels.data(), 0, nullptr) == 0)
    fail(fmt::format("write_png: {}", image.message));
  out.resize(size);
  return out;
}

std::vector<int32_t> scan_order(const std::string& name, int64_t side) {
  const int64_t n = side * side;
  int bits = 0;
  while (int64_t{1} << bits < side) ++bits;
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  if (name.empty()) return order;
  if (side != int64_t{1} << bits)
    fail_usage(fmt::format("scan_order: side: expected a power of two, found {}", side));
  for (int64_t i = 0; i < n; ++i) {
    if (name == "br") {
      int32_t reversed = 0;
      for (int b = 0; b < 2 * bits; ++b) reversed |= static_cast<int32_t>(i >> b & 1) << (2 * bits - 1 - b);
      order[i] = reversed;
    } else if (name == "snake") {
      const int64_t row = i / side, column = i % side;
      order[i] = static_cast<int32_t>(row * side + (row % 2 ? side - 1 - column : column));
    } else if (name == "hilbert") {
      const auto [row, column] = hilbert_point(static_cast<uint32_t>(i), bits);
      order[i] = static_cast<int32_t>(row * side + column);
    } else {
      fail_usage(fmt::format("permute: expected null, br, snake, hilbert or transpose, found '{}'", name));
    }
  }
  return order;
}

std::string draw(std::span<const uint8_t> grey, int64_t height, int64_t width) {
  constexpr std::string_view kShades = " .:-=+*#%@";
  std::string text;
  for (int64_t r = 0; r < height; ++r) {
    for (int64_t c = 0; c < width; ++c) text.append(2, kShades[grey[r * width + c] * kShades.size() / 256]);
    while (!text.empty() && text.back() == ' ') text.pop_back();
    text += '\n';
  }
  return text;
}

}  // namespace eigentrace
