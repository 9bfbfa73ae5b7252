#include "tensor/io/npy.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <charconv>

#include "tensor/io/json_writer.h"
#include "tensor/io/npy_header.h"

namespace eigentrace {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the arrays are written as they lie in memory, as '<'");

constexpr std::string_view magic = "\x93NUMPY";
constexpr size_t max_header = size_t(1) << 20;

const char* descr_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "<f4";
    case DType::f64:
      return "<f8";
    case DType::i32:
      return "<i4";
    case DType::i64:
      return "<i8";
    case DType::u8:
      return "|u1";
    case DType::bf16:
      break;  // step memory only
  }
  fail("write_npy: dtype: expected one of f32, f64, i32, i64, u8");
}

/// Reads the one Python literal that a header is: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
class LiteralParser {
 public:
  LiteralParser(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  NpyHeader parse() {
    NpyHeader header;
    bool descr = false, order = false, shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string_view key = quoted();
      expect(':');
      bool& seen = key == "descr" ? descr : key == "fortran_order" ? order : shape;
      if (key != "descr" && key != "fortran_order" && key != "shape")
        wrong("the keys descr, fortran_order and shape");
      if (seen) wrong("each key once");
      seen = true;
      if (key == "descr") header.dtype = dtype(quoted());
      if (key == "fortran_order") header.fortran_order = truth();
      if (key == "shape") header.shape = tuple();
      if (accept('}')) break;
      expect(',');
    }
    if (!descr || !order || !shape) wrong("descr, fortran_order and shape");
    skip_space();
    if (at_ != text_.size()) wrong("nothing after the dictionary");
    return header;
  }

 private:
  [[noreturn]] void wrong(const std::string& expected) const {
    fail(fmt::format("{}: header: expected {}, found at its character {}: {}", where_, expected, at_,
                     json_quoted(text_.substr(std::min(at_, text_.size()), 20))));
  }
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) at_++;
  }
  bool accept(char c) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    at_++;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) wrong(fmt::format("'{}'", c));
  }
  std::string_view quoted() {
    skip_space();
    const char quote = at_ < text_.size() ? text_[at_] : ' ';
    if (quote != '\'' && quote != '"') wrong("a quoted word");
    const size_t end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) wrong("a quoted word");
    const std::string_view word = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return word;
  }
  DType dtype(std::string_view descr) const {
    if (descr == "<f4") return DType::f32;
    if (descr == "<f8") return DType::f64;
    if (descr == "<i4") return DType::i32;
    if (descr == "<i8") return DType::i64;
    if (descr == "|u1" || descr == "|b1") return DType::u8;
    fail(
        fmt::format("{}: header: descr: expected <f4, <f8, <i4, <i8, |u1 or |b1, found {}; convert the "
                    "array, e.g. with .astype('<f4')",
                    where_, json_quoted(descr)));
  }
  bool truth() {
    skip_space();
    for (const std::string_view word : {"True", "False"})
      if (text_.substr(at_, word.size()) == word) {
        at_ += word.size();
        return word == "True";
      }
    wrong("True or False");
  }
  std::vector<int64_t> tuple() {
    std::vector<int64_t> shape;
    expect('(');
    while (!accept(')')) {
      skip_space();
      int64_t dim = 0;
      const auto [end, code] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), dim);
      if (code != std::errc() || dim < 0) wrong("a dimension from 0 to 2^63 - 1");
      at_ = size_t(end - text_.data());
      shape.push_back(dim);
      if (accept(')')) break;
      expect(',');
    }
    return shape;
  }
  std::string_view text_;
  const std::string& where_;
  size_t at_ = 0;
};

}  // namespace

std::string npy_header(const HostView& array) {
  const size_t bytes = size_t(checked_count(array.shape, array.dtype, "write_npy")) * size_of(array.dtype);
  if (bytes != array.bytes.size())
    fail(fmt::format("write_npy: array: expected {} bytes ({} of {}), found {}", bytes,
                     shape_text(array.shape), name_of(array.dtype), array.bytes.size()));
  std::string text =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", descr_of(array.dtype),
                  fmt::join(array.shape, ", "), array.shape.size() == 1 ? "," : "");
  // Padded so that the data are aligned to 64 bytes, and ended by a newline. Version 2.0 only where 16 bits
  // do not do.
  const auto padded = [&](size_t lead) { return (lead + text.size() + 1 + 63) / 64 * 64 - lead; };
  const bool wide = padded(10) > 0xFFFF;
  const size_t lead = wide ? 12 : 10, length = padded(lead);
  text.append(length - text.size() - 1, ' ');
  text += '\n';
  std::string header(magic);
  header += wide ? '\2' : '\1';
  header += '\0';
  for (size_t i = 0; i < lead - 8; i++) header += char(length >> 8 * i & 255);
  return header + text;
}

size_t npy_header_bytes(std::string_view start, const std::string& where) {
  if (start.substr(0, magic.size()) != magic || start.size() < 10)
    fail(fmt::format(
        "{}: expected the first bytes \\x93NUMPY and a version, found another format or a file that is cut",
        where));
  const int major = uint8_t(start[6]), minor = uint8_t(start[7]);
  if (major < 1 || major > 3 || minor != 0)
    fail(fmt::format("{}: expected version 1.0, 2.0 or 3.0, found {}.{}", where, major, minor));
  const size_t lead = major == 1 ? 10 : 12;
  if (start.size() < lead)
    fail(fmt::format("{}: header: expected {} bytes, found {}; the file is cut", where, lead, start.size()));
  size_t length = 0;
  for (size_t i = 8; i < lead; i++) length |= size_t(uint8_t(start[i])) << 8 * (i - 8);
  if (length > max_header)
    fail(fmt::format("{}: header length: expected at most {}, found {}; the file is damaged", where,
                     max_header, length));
  return lead + length;
}

NpyHeader parse_npy_header(std::string_view start, const std::string& where) {
  const size_t bytes = npy_header_bytes(start, where), lead = start[6] == 1 ? 10 : 12;
  if (start.size() < bytes)
    fail(fmt::format("{}: header: expected {} bytes, found {}; the file is cut", where, bytes, start.size()));
  NpyHeader header = LiteralParser(start.substr(lead, bytes - lead), where).parse();
  header.bytes = bytes;
  header.data_bytes = size_t(checked_count(header.shape, header.dtype, where)) * size_of(header.dtype);
  return header;
}

void make_row_major(HostArray& array) {
  const size_t rank = array.shape.size(), element = size_of(array.dtype);
  if (rank < 2 || array.bytes.empty()) return;
  std::vector<size_t> stride(rank, 1);  // of the column-major source, in elements
  for (size_t d = 1; d < rank; d++) stride[d] = stride[d - 1] * size_t(array.shape[d - 1]);
  std::vector<std::byte> out(array.bytes.size());
  std::vector<int64_t> index(rank, 0);
  size_t from = 0;
  for (size_t to = 0; to < out.size(); to += element) {
    std::copy_n(array.bytes.data() + from * element, element, out.data() + to);
    for (size_t d = rank; d-- > 0;) {
      from += stride[d];
      if (++index[d] < array.shape[d]) break;
      from -= stride[d] * size_t(array.shape[d]);
      index[d] = 0;
    }
  }
  array.bytes = std::move(out);
}

void write_npy(const std::string& path, const HostView& array) {
  const std::string header = npy_header(array);
  write_atomically(
      path,
      [&](FileWriter& file) {
        file.write(header);
        file.write(array.bytes);
      },
      header.size() + array.bytes.size());
}

HostArray read_npy(const std::string& path) {
  const InputFile file(path);
  const std::string where = "read_npy: " + path;
  std::string start(size_t(std::min<uint64_t>(file.size(), 12)), '\0');
  file.read_at(0, start.data(), start.size());
  start.resize(size_t(std::min<uint64_t>(file.size(), npy_header_bytes(start, where))));
  file.read_at(0, start.data(), start.size());
  const NpyHeader header = parse_npy_header(start, where);
  if (file.size() - header.bytes != header.data_bytes)
    fail(fmt::format("{}: data: expected {} bytes ({} of {}), found {}; the file is cut or damaged", where,
                     header.data_bytes, shape_text(header.shape), name_of(header.dtype),
                     file.size() - header.bytes));
  HostArray array(header.dtype, header.shape);
  file.read_at(header.bytes, array.bytes.data(), array.bytes.size());
  if (header.fortran_order) make_row_major(array);
  return array;
}

}  // namespace eigentrace
