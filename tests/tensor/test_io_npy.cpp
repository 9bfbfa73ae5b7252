#include <cmath>
#include <numeric>

#include "tensor/io/npy.h"
#include "tests/tensor/io_testing.h"

using namespace eigentrace;

namespace {

std::string npy_of(const std::string& dictionary, const std::string& data, int version = 1) {
  std::string text = "\x93NUMPY";
  text += char(version);
  text += '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); i++) text += char(dictionary.size() >> 8 * i & 255);
  return text + dictionary + data;
}

std::string dictionary(const std::string& descr, const std::string& shape,
                       const std::string& order = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }\n";
}

std::vector<float> ramp(size_t n) {
  std::vector<float> values(n);
  std::iota(values.begin(), values.end(), 0.5f);
  return values;
}

bool same(const HostArray& a, const HostView& b) {
  return a.dtype == b.dtype && a.shape == b.shape && a.bytes.size() == b.bytes.size() &&
         std::equal(a.bytes.begin(), a.bytes.end(), b.bytes.begin());
}

}  // namespace

TEST_CASE("npy: arrays of every type and shape come back bit for bit") {
  TestFolder folder;
  const std::vector<float> f = ramp(63), none;
  const std::vector<double> d = {1e-300, std::nan("")};
  const std::vector<int32_t> i = {-5};
  const std::vector<int64_t> l = {int64_t(1) << 62, -1, 7};
  const std::vector<uint8_t> u = {0, 1, 255};
  for (const HostView& view :
       {HostView({7, 9}, f), HostView({63}, f), HostView({2, 1, 1}, d), HostView({}, i), HostView({3}, l),
        HostView({1, 3}, u), HostView({3, 0, int64_t(1) << 40}, none), HostView({0}, none)}) {
    write_npy(folder / "a.npy", view);
    CHECK(same(read_npy(folder / "a.npy"), view));
    CHECK((read_file(folder / "a.npy").size() - view.bytes.size()) % 64 == 0);
  }
}

TEST_CASE("npy: the bytes are NumPy's own") {
  TestFolder folder;
  write_npy(folder / "a.npy", HostView({2}, std::vector<float>{1, 2}));
  const std::string head = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
  const std::string expected = std::string("\x93NUMPY\1\0\x76\0", 10) + head +
                               std::string(118 - head.size() - 1, ' ') + '\n' +
                               std::string("\0\0\x80\x3F\0\0\0\x40", 8);
  CHECK(read_file(folder / "a.npy") == expected);
}

TEST_CASE("npy: a header too long for version 1.0 is written as 2.0") {
  TestFolder folder;
  const std::vector<float> one = {1};
  const HostView view(std::vector<int64_t>(30000, 1), one);
  write_npy(folder / "a.npy", view);
  CHECK(read_file(folder / "a.npy")[6] == 2);
  CHECK(same(read_npy(folder / "a.npy"), view));
}

TEST_CASE("npy: other versions, Fortran order, bool and free spacing are read") {
  TestFolder folder;
  const auto read = [&](const std::string& text) {
    write_atomically(folder / "a.npy", text);
    return read_npy(folder / "a.npy");
  };
  CHECK(same(read(npy_of(dictionary("|b1", "(2,)"), std::string("\0\1", 2), 2)),
             HostView({2}, std::vector<uint8_t>{0, 1})));
  CHECK(same(read(npy_of("{\"shape\":(2,),\"descr\":'|u1','fortran_order':True}", "ab", 3)),
             HostView({2}, std::vector<uint8_t>{'a', 'b'})));
  // Column-major (2, 3, 2): element (i, j, k) lies at i + 2 j + 6 k.
  const HostArray turned = read(npy_of(dictionary("|u1", "(2, 3, 2)", "True"), "abcdefghijkl"));
  CHECK(same(turned, HostView({2, 3, 2}, std::vector<uint8_t>{'a', 'g', 'c', 'i', 'e', 'k', 'b', 'h', 'd',
                                                              'j', 'f', 'l'})));
}

TEST_CASE("npy: hostile files are errors that name the place") {
  TestFolder folder;
  struct Case {
    std::string text, says;
  };
  const std::string eight(8, 'x');
  const Case cases[] = {
      {"", "expected the first bytes"},
      {"\x93NUMPY\1", "expected the first bytes"},
      {"PK\3\4 a zip instead", "expected the first bytes"},
      {npy_of(dictionary("<f4", "(2,)"), eight, 4), "found 4.0"},
      {std::string("\x93NUMPY\2\0\1\1", 10), "expected 12 bytes, found 10"},
      {std::string("\x93NUMPY\2\0\xFF\xFF\xFF\xFF", 12),
       "header length: expected at most 1048576, found 4294967295"},
      {npy_of(dictionary("<f4", "(2,)"), "").substr(0, 40), "the file is cut"},
      {npy_of(dictionary("<f4", "(2,)"), eight + "y"), "expected 8 bytes ([2] of f32), found 9"},
      {npy_of(dictionary("<f4", "(2,)"), "1234567"), "expected 8 bytes ([2] of f32), found 7"},
      {npy_of(dictionary("<f4", "(4294967296, 4294967296)"), eight), "fits in 2^63 bytes"},
      {npy_of(dictionary("<f4", "(9223372036854775808,)"), eight), "a dimension from 0 to 2^63 - 1"},
      {npy_of(dictionary("<f4", "(-2,)"), eight), "a dimension from 0 to 2^63 - 1"},
      {npy_of(dictionary("<f4", "(2.5,)"), eight), "expected ','"},
      {npy_of(dictionary("<f4", "2"), eight), "expected '('"},
      {npy_of(dictionary("<f4", "(2,"), eight), "header"},
      {npy_of(dictionary("<f4", "(2 2)"), eight), "expected ','"},
      {npy_of(dictionary(">f4", "(2,)"), eight), "found \">f4\"; convert the array"},
      {npy_of(dictionary("|O", "(1,)"), eight), "found \"|O\""},
      {npy_of(dictionary("<f4", "(2,)", "Maybe"), eight), "expected True or False"},
      {npy_of("{'descr': '<f4', 'shape': (2,)}", eight), "expected descr, fortran_order and shape"},
      {npy_of("{'descr': '<f4', 'descr': '<f4'}", eight), "each key once"},
      {npy_of("{'kind': '<f4'}", eight), "the keys descr, fortran_order and shape"},
      {npy_of("{'descr", eight), "expected a quoted word"},
      {npy_of("{descr: 1}", eight), "expected a quoted word"},
      {npy_of("", eight), "expected '{'"},
      {npy_of(dictionary("<f4", "(2,)") + "import os", eight), "expected nothing after the dictionary"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.says);
    write_atomically(folder / "bad.npy", c.text);
    const std::string message = error_of([&] { read_npy(folder / "bad.npy"); });
    CAPTURE(message);
    CHECK(contains(message, c.says));
    CHECK(contains(message, "bad.npy"));
  }
}

TEST_CASE("npz: members come back bit for bit, stored, deflated and as ZIP64") {
  TestFolder folder;
  const std::vector<float> f = ramp(100000), none;
  const std::vector<int64_t> l = {-1};
  const std::vector<std::pair<std::string, HostView>> arrays = {{"layers.0/λ", HostView({100, 1000}, f)},
                                                                {"empty", HostView({0, 3}, none)},
                                                                {"scalar", HostView({}, l)}};
  for (const bool deflate : {false, true})
    for (const uint64_t zip64_from : {uint64_t(0xFFFFFFFF), uint64_t(200), uint64_t(0)}) {
      CAPTURE(deflate);
      CAPTURE(zip64_from);
      write_npz(folder / "a.npz", arrays, {deflate, zip64_from});
      const auto back = read_npz(folder / "a.npz");
      CHECK(back.size() == 3);
      for (const auto& [name, view] : arrays) CHECK(same(back.at(name), view));
    }
  write_npz(folder / "none.npz", {});
  CHECK(read_npz(folder / "none.npz").empty());
  const std::string stored = (write_npz(folder / "a.npz", arrays), read_file(folder / "a.npz"));
  const std::string packed = (write_npz(folder / "a.npz", arrays, {true}), read_file(folder / "a.npz"));
  CHECK(packed.size() * 2 < stored.size());
  CHECK_FALSE(contains(stored, "PK\x06\x06"));
}

TEST_CASE("npz: names are written once and readable") {
  TestFolder folder;
  const std::vector<float> one = {1};
  const HostView view({1}, one);
  CHECK(contains(error_of([&] {
                   write_npz(folder / "a", {{"a", view}, {"a", view}});
                 }),
                 "each once; found \"a\""));
  CHECK(contains(error_of([&] { write_npz(folder / "a", {{"", view}}); }), "name: expected UTF-8"));
  CHECK(contains(error_of([&] { write_npz(folder / "a", {{"\xFF", view}}); }), "name: expected UTF-8"));
  CHECK(contains(error_of([&] {
                   write_npz(folder / "a", {{std::string(70000, 'n'), view}});
                 }),
                 "name: expected UTF-8"));
  CHECK(folder.files() == 0);
}

TEST_CASE("npz: failing writes leave the old file") {
  TestFolder folder;
  const std::vector<float> f = ramp(200000);
  const int64_t calls = fail_every_call(folder, folder / "a.npz", [&] {
    write_npz(folder / "a.npz", {{"a", HostView({200000}, f)}});
  });
  CHECK(calls >= 8);
  fail_every_call(folder, folder / "a.npz", [&] { write_npy(folder / "a.npz", HostView({200000}, f)); });
}

TEST_CASE("npz: hostile archives are errors") {
  TestFolder folder;
  const std::vector<float> f = ramp(100);
  const auto says = [&](const std::string& text, uint64_t max_bytes = 1 << 20) {
    write_atomically(folder / "bad.npz", text);
    const std::string message = error_of([&] { read_npz(folder / "bad.npz", max_bytes); });
    CHECK((message.empty() || contains(message, "bad.npz")));
    return message;
  };
  const auto made = [&](bool deflate) {
    write_npz(folder / "bad.npz", {{"a", HostView({100}, f)}, {"b", HostView({10, 10}, f)}}, {deflate});
    return read_file(folder / "bad.npz");
  };
  const std::string good = made(false), packed = made(true);
  const size_t directory = good.find("PK\1\2"), second = good.find("PK\1\2", directory + 1),
               end = good.find("PK\5\6");
  const auto with = [](std::string text, size_t at, const std::string& bytes) {
    return text.replace(at, bytes.size(), bytes);
  };

  CHECK(says(good).empty());
  CHECK(contains(says(""), "expected a zip's end record"));
  CHECK(contains(says("not a zip, but long enough to be one at first sight"), "expected a zip's end record"));
  CHECK(contains(says(good, 1000), "expected at most 472 more bytes when unpacked, found 528"));
  CHECK(contains(says(with(good, 200, "!")), "checksum: expected"));
  CHECK(contains(says(with(good, directory + 16, "!")), "checksum: expected"));
  CHECK(contains(says(with(good, directory + 8, "\1")), "expected no encryption"));
  CHECK(contains(says(with(good, directory + 10, "\x0C")), "found method 12"));
  CHECK(contains(says(with(good, directory + 24, "\1")), "two sizes to agree"));
  CHECK(contains(says(with(good, directory + 42, "\1")), "expected a member at offset 1"));
  CHECK(contains(says(with(good, second + 42, std::string(4, '\0'))), "expected the same name"));
  CHECK(contains(says(with(with(good, second + 42, std::string(4, '\0')), second + 46, "a")),
                 "two on offset 0"));
  CHECK(contains(says(with(good, directory + 46, "z")), "expected the same name"));
  CHECK(
      contains(says(with(with(good, 30 + 2, "x"), directory + 46 + 2, "x")), "expected members named *.npy"));
  CHECK(contains(says(with(with(good, good.find("b.npy"), "a"), second + 46, "a")), "found \"a\" twice"));
  CHECK(contains(says(with(good, end + 10, "\3")), "directory: expected 3 members, found"));
  CHECK(contains(says(with(good, end + 10, "\xFF")), "directory: expected 255 members"));
  CHECK(contains(says(with(good, end + 16, "\xFF\xFF")), "directory: expected it before"));
  CHECK(contains(says(with(good, directory, "X")), "expected 2 members, found 0"));
  CHECK(contains(says(with(good, directory + 28, "\xFF\xFF")), "ends inside number 1"));
  CHECK(contains(says(with(good, 30 + 5 + 6, "\7")), "expected version"));
  const size_t packed_directory = packed.find("PK\1\2");
  CHECK(
      contains(says(with(packed, packed_directory + 24, "\xFF\xFF\xFF\x7F")), "expected at most 1032 times"));
  CHECK(contains(says(with(packed, packed_directory + 24, "\x11\x02")),
                 "expected 400 bytes ([100] of f32), found 401"));
  CHECK(contains(says(with(packed, 35, std::string(40, '\xFF'))), "expected deflated bytes"));
  for (const std::string& text : {good, packed})
    for (size_t n = 0; n < text.size(); n += 3) CHECK_FALSE(says(text.substr(0, n)).empty());
}

TEST_CASE("npz: one byte changed anywhere is found or changes no value") {
  TestFolder folder;
  const std::vector<float> f = ramp(10);
  for (const bool deflate : {false, true}) {
    write_npz(folder / "a.npz", {{"a", HostView({10}, f)}}, {deflate});
    const std::string good = read_file(folder / "a.npz");
    for (size_t at = 0; at < good.size(); at++) {
      std::string text = good;
      text[at] = char(text[at] ^ 1 << at % 8);
      write_atomically(folder / "a.npz", text);
      CAPTURE(at);
      try {
        const auto back = read_npz(folder / "a.npz");
        CHECK(back.size() == 1);
        CHECK(same(back.begin()->second, HostView({10}, f)));
      } catch (const Error&) {}
    }
  }
}
