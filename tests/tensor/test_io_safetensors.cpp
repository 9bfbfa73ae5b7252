#include <cmath>
#include <numeric>

#include "tensor/io/safetensors.h"
#include "tests/tensor/io_testing.h"

using namespace eigentrace;

namespace {

/// A file with this header and so many bytes of data.
std::string file_of(const std::string& header, size_t data_bytes) {
  std::string text;
  for (int i = 0; i < 8; i++) text += char(uint64_t(header.size()) >> 8 * i & 255);
  text += header;
  for (size_t i = 0; i < data_bytes; i++) text += char(i + 1);
  return text;
}

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

}  // namespace

TEST_CASE("safetensors: arrays of every type and shape come back bit for bit") {
  TestFolder folder;
  std::vector<float> f(63);
  std::iota(f.begin(), f.end(), -30.5f);
  f[1] = std::nanf("");
  f[2] = -0.0f;
  const std::vector<double> d = {1e-300, 2};
  const std::vector<int32_t> i = {-5};
  const std::vector<int64_t> l = {int64_t(1) << 62, -1, 7};
  const std::vector<uint8_t> u = {0, 1, 255, 4, 5};
  const std::vector<float> none;
  write_safetensors(folder / "m",
                    {{"layers.0.weight", HostView({7, 9}, f)},
                     {"d", HostView({2, 1}, d)},
                     {"scalar", HostView({}, i)},
                     {"l", HostView({3}, l)},
                     {"odd \"name\" λ", HostView({5}, u)},
                     {"empty", HostView({3, 0, int64_t(1) << 40}, none)}},
                    {{"step", "17"}, {"note", "λ \"quoted\"\n\"crc32\":\""}});
  const SafetensorsReader reader(folder / "m");
  reader.verify_checksum();
  CHECK(reader.entries().size() == 6);
  CHECK(reader.metadata().at("step") == "17");
  CHECK(reader.metadata().at("note") == "λ \"quoted\"\n\"crc32\":\"");
  const HostArray w = reader.read("layers.0.weight");
  CHECK(w.shape == std::vector<int64_t>{7, 9});
  CHECK(std::memcmp(w.bytes.data(), f.data(), 63 * 4) == 0);
  CHECK(reader.read("d").as<double>()[0] == 1e-300);
  CHECK(reader.read("scalar").shape.empty());
  CHECK(reader.read("scalar").as<int32_t>()[0] == -5);
  CHECK(reader.read("l").as<int64_t>()[0] == int64_t(1) << 62);
  CHECK(reader.read("odd \"name\" λ").as<uint8_t>()[2] == 255);
  CHECK(reader.read("empty").shape == std::vector<int64_t>{3, 0, int64_t(1) << 40});
  CHECK(reader.read("empty").count() == 0);
  for (const auto& [name, e] : reader.entries()) {
    const HostArray array = reader.read(name);
    CHECK(e.begin % size_of(array.dtype) == 0);
  }
  CHECK(uint8_t(read_file(folder / "m")[0]) % 8 == 0);  // the header's length
  CHECK(contains(error_of([&] { reader.read("absent"); }), "expected an array \"absent\""));
  CHECK(contains(error_of([&] { reader.read("d").as<float>(); }), "expected f64"));
}

TEST_CASE("safetensors: a file without arrays, and one written elsewhere") {
  TestFolder folder;
  write_safetensors(folder / "none", {});
  CHECK(SafetensorsReader(folder / "none").entries().empty());
  write_atomically(folder / "bare", file_of("{}  ", 0));
  const SafetensorsReader bare(folder / "bare");
  CHECK(bare.metadata().empty());
  CHECK(contains(error_of([&] { bare.verify_checksum(); }), "expected a checksum under crc32, found none"));
}

TEST_CASE("safetensors: F16, BF16 and BOOL are read, others are named") {
  TestFolder folder;
  std::string text = file_of(
      "{\"b\":" + entry("BF16", "[2]", "[0,4]") + ",\"h\":" + entry("F16", "[7]", "[4,18]") +
          ",\"t\":" + entry("BOOL", "[2]", "[18,20]") + ",\"x\":" + entry("U16", "[1]", "[20,22]") + "}",
      0);
  const uint16_t words[] = {0x3F80, 0xC049, 0x3C00, 0x8000, 0x0001, 0x03FF,
                            0x7BFF, 0xFC00, 0x7E00, 0x0200, 0xFFFF};
  text.append(reinterpret_cast<const char*>(words), sizeof words);
  write_atomically(folder / "m", text);
  const SafetensorsReader reader(folder / "m");
  const HostArray b = reader.read_widened("b"), h = reader.read_widened("h");
  CHECK(b.as<float>()[0] == 1.0f);
  CHECK(b.as<float>()[1] == -3.140625f);
  CHECK(h.as<float>()[0] == 1.0f);
  CHECK(std::signbit(h.as<float>()[1]));
  CHECK(h.as<float>()[2] == 0x1p-24f);
  CHECK(h.as<float>()[3] == 1023 * 0x1p-24f);
  CHECK(h.as<float>()[4] == 65504.0f);
  CHECK(h.as<float>()[5] == -INFINITY);
  CHECK(std::isnan(h.as<float>()[6]));
  CHECK(reader.read("t").as<uint8_t>()[0] == 0);
  CHECK(reader.read("t").as<uint8_t>()[1] == 1);
  CHECK(contains(error_of([&] { reader.read("h"); }), "found F16; ask for it widened"));
  CHECK(contains(error_of([&] { reader.read_widened("x"); }), "found U16"));
}

TEST_CASE("safetensors: hostile files are errors that name the place") {
  TestFolder folder;
  const std::string ok = entry("F32", "[2]", "[0,8]");
  struct Case {
    std::string text, says;
  };
  const Case cases[] = {
      {"", "expected at least 8 bytes, found 0"},
      {"1234567", "expected at least 8 bytes, found 7"},
      {std::string(8, '\xFF'), "header length: expected at most 100000000 bytes"},
      {std::string("\x01\xE1\xF5\x05\0\0\0\0", 8) + "{}",
       "header length: expected at most 100000000 bytes, found 100000001"},
      {std::string("\x03\0\0\0\0\0\0\0", 8) + "{}", "expected at most the 2 bytes that follow, found 3"},
      {std::string(8, '\0'), "expected JSON that starts with {"},
      {file_of(" {}", 0), "expected JSON that starts with {"},
      {file_of("{\"a\":" + ok, 8), "expected UTF-8 JSON"},
      {file_of("{\"a\xFF\":" + ok + "}", 8), "expected UTF-8 JSON"},
      {file_of("{\"a\":" + ok + "}x", 8), "expected UTF-8 JSON"},
      {file_of("{\"a\":" + ok + ",\"a\":" + ok + "}", 8), "\"a\": expected each name once"},
      {file_of("{\"a\":3}", 0),
       "\"a\": expected an object with dtype, shape and data_offsets, found the number 3"},
      {file_of("{\"a\":null}", 0), "found null"},
      {file_of("{\"a\":[[[[[[[[[[[[]]]]]]]]]]]]}", 0), "found an array"},
      {file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8),
       "\"a\": expected dtype, shape and data_offsets, found not all"},
      {file_of("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 8), "\"dtype\" twice"},
      {file_of("{\"a\":{\"kind\":\"F32\"}}", 8), "found \"kind\""},
      {file_of("{\"a\":{\"dtype\":4}}", 8), "expected a string as dtype"},
      {file_of("{\"a\":{\"dtype\":[4]}}", 8), "expected a string as dtype"},
      {file_of("{\"a\":{\"shape\":8}}", 8), "expected an array as shape"},
      {file_of("{\"a\":" + entry("F32", "[-2]", "[0,8]") + "}", 8),
       "whole numbers of at least 0 as shape, found the number -2"},
      {file_of("{\"a\":" + entry("F32", "[2.0]", "[0,8]") + "}", 8),
       "whole numbers of at least 0 as shape, found the number 2.0"},
      {file_of("{\"a\":" + entry("F32", "[\"2\"]", "[0,8]") + "}", 8), "found the string"},
      {file_of("{\"a\":" + entry("F32", "[18446744073709551615]", "[0,8]") + "}", 8),
       "dimensions below 2^63"},
      {file_of("{\"a\":" + entry("F32", "[99999999999999999999]", "[0,8]") + "}", 8), "whole numbers"},
      {file_of("{\"a\":" + entry("F32", "[4294967296,4294967296]", "[0,8]") + "}", 8),
       "expected a size below 2^64 bytes"},
      {file_of("{\"a\":" + entry("F64", "[2305843009213693953]", "[0,8]") + "}", 8),
       "expected a size below 2^64 bytes"},
      {file_of("{\"a\":" + entry("F32", "[2]", "[0]") + "}", 8), "expected two data_offsets, found 1"},
      {file_of("{\"a\":" + entry("F32", "[2]", "[0,8,8]") + "}", 8), "expected two data_offsets, found more"},
      {file_of("{\"a\":" + entry("F32", "[2]", "[8,0]") + "}", 8), "expected begin ≤ end ≤ 8"},
      {file_of("{\"a\":" + entry("F32", "[3]", "[0,12]") + "}", 8), "expected begin ≤ end ≤ 8"},
      {file_of("{\"a\":" + entry("F32", "[2]", "[18446744073709551608,18446744073709551615]") + "}", 8),
       "begin ≤ end ≤ 8"},
      {file_of("{\"a\":" + entry("F32", "[3]", "[0,8]") + "}", 8),
       "expected 12 bytes ([3] of F32), found [0, 8], which is 8"},
      {file_of("{\"a\":" + entry("F33", "[2]", "[0,8]") + "}", 8),
       "dtype: expected one of the format's, found \"F33\""},
      {file_of("{\"a\":" + ok + ",\"b\":" + entry("F32", "[2]", "[4,12]") + "}", 12), "found 4 (an overlap)"},
      {file_of("{\"a\":" + ok + ",\"b\":" + ok + "}", 8), "found 0 (an overlap)"},
      {file_of("{\"a\":" + ok + ",\"b\":" + entry("F32", "[2]", "[12,20]") + "}", 20), "found 12 (a gap)"},
      {file_of("{\"a\":" + entry("F32", "[1]", "[4,8]") + "}", 8), "found 4 (a gap)"},
      {file_of("{\"a\":" + ok + "}", 9), "expected 8 bytes after the header, found 9"},
      {file_of("{\"a\":" + ok + "}", 7), "begin ≤ end ≤ 7"},
      {file_of("{\"__metadata__\":{\"k\":1}}", 0), "expected strings as metadata"},
      {file_of("{\"__metadata__\":{\"k\":{}}}", 0), "expected strings as metadata"},
      {file_of("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0), "each metadata key once"},
      {file_of("{\"__metadata__\":{},\"__metadata__\":{}}", 0), "each name once"},
      {file_of("{\"__metadata__\":[]}", 0), "found an array"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.says);
    write_atomically(folder / "bad.safetensors", c.text);
    const std::string message = error_of([&] { SafetensorsReader reader(folder / "bad.safetensors"); });
    CAPTURE(message);
    CHECK(contains(message, c.says));
    CHECK(contains(message, "bad.safetensors"));
  }
}

TEST_CASE("safetensors: cut anywhere or with any bit flipped, a file is found damaged") {
  TestFolder folder;
  const std::vector<float> values(33, 0.5f);
  write_safetensors(folder / "m", {{"a", HostView({33}, values)}, {"b", HostView({3, 11}, values)}},
                    {{"k", "v"}});
  const std::string whole = read_file(folder / "m");
  const auto damaged = [&](const std::string& text) {
    write_atomically(folder / "m", text);
    return !error_of([&] { SafetensorsReader(folder / "m").verify_checksum(); }).empty();
  };
  CHECK_FALSE(damaged(whole));
  for (size_t n = 0; n < whole.size(); n += 7) CHECK(damaged(whole.substr(0, n)));
  for (size_t at = 0; at < whole.size(); at++) {
    std::string flipped = whole;
    flipped[at] = char(flipped[at] ^ 1 << at % 8);
    CAPTURE(at);
    CHECK(damaged(flipped));
  }
}

TEST_CASE("safetensors: a failing write leaves the old checkpoint") {
  TestFolder folder;
  const std::vector<double> values(100000, 0.5);
  const int64_t calls = fail_every_call(folder, folder / "m", [&] {
    write_safetensors(folder / "m", {{"a", HostView({100000}, values)}});
  });
  CHECK(calls >= 8);
}

TEST_CASE("safetensors: what cannot be written is refused before the file is touched") {
  TestFolder folder;
  const std::vector<float> one = {1};
  const HostView view({1}, one);
  const auto write = [&](const SafetensorsArrays& arrays,
                         const std::map<std::string, std::string>& metadata = {}) {
    return error_of([&] { write_safetensors(folder / "m", arrays, metadata); });
  };
  CHECK(contains(write({{"a", view}, {"b", view}, {"a", view}}), "found \"a\" twice"));
  CHECK(contains(write({{"", view}}), "expected UTF-8 other than __metadata__"));
  CHECK(contains(write({{"__metadata__", view}}), "other than __metadata__"));
  CHECK(contains(write({{"\xFF", view}}), "expected UTF-8"));
  CHECK(contains(write({}, {{"crc32", "1"}}), "expected no key crc32"));
  CHECK(contains(write({}, {{"k", "\xFF"}}), "metadata: expected UTF-8"));
  HostView wrong = view;
  wrong.shape = {2};
  CHECK(contains(write({{"a", wrong}}), "expected 8 bytes ([2] of f32), found 4"));
  CHECK(contains(error_of([&] { HostView bad({2}, one); }), "expected as many as shape [2] says, found 1"));
  CHECK(contains(error_of([] {
                   HostArray bad(DType::f64, {int64_t(1) << 40, int64_t(1) << 40});
                 }),
                 "fits in 2^63 bytes"));
  CHECK(contains(error_of([] { HostArray bad(DType::f64, {-1}); }), "at least 0"));
  CHECK(folder.files() == 0);
}
