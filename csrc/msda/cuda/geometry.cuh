// Where a sampling point lands: levels, bilinear weights, corner addresses, and the order in which blocks
// visit queries.
//
// A point is read from the 2 x 2 cell of value rows whose first corner is
//     first = clamp(floor(x), 0, width - 2)       (and alike for y)
// so that a cell never leaves its level and always steps by the same two distances. A node at distance d from
// the point weighs max(0, 1 - d): that is the bilinear weight inside, zero where the point is outside, and
// zero for NaN, since fmax and fmin return the operand that is a number. Nothing branches, and no address is
// ever out of range. Value must be finite: a row that is read with weight zero still turns infinities into
// NaN.
#pragma once

#include "numbers.cuh"

namespace groundingml::cuda {

template <class F, class Offset>
struct Level {
  F width, height;
  F last_x, last_y;       // largest first corner: width - 2 and height - 2, at least 0
  Offset start;           // distance of the level's first row from the sample's first
  Offset step_x, step_y;  // distance to the next column and row; 0 where the level has only one
};

// Distances are in any unit (bytes or elements), as the one who builds the table chooses.
template <class F, class Offset, int MAX_LEVELS>
struct LevelTable {
  using Distance = Offset;
  static constexpr int kMaxLevels = MAX_LEVELS;
  Level<F, Offset> level[MAX_LEVELS];

  // `shapes` is (height, width) of each level; `row` the distance between two rows of value.
  void fill(const int64_t* shapes, int levels, int64_t row) {
    int64_t start = 0;
    for (int l = 0; l < levels; ++l) {
      const int64_t height = shapes[2 * l], width = shapes[2 * l + 1];
      level[l].width = static_cast<F>(width);
      level[l].height = static_cast<F>(height);
      level[l].last_x = static_cast<F>(width > 1 ? width - 2 : 0);
      level[l].last_y = static_cast<F>(height > 1 ? height - 2 : 0);
      level[l].start = static_cast<Offset>(start);
      level[l].step_x = static_cast<Offset>(width > 1 ? row : 0);
      level[l].step_y = static_cast<Offset>(height > 1 ? width * row : 0);
      start += height * width * row;
    }
  }
};

// One coordinate of a point against its cell: the weights of the cell's two nodes, and their derivatives.
template <class F>
struct Axis {
  F first;      // the cell's first node, a whole number
  F low, high;  // weight of `first` and of `first + 1`

  GML_HOST_DEVICE Axis(F x, F size, F last) {
    first = fmin(fmax(floor(x), F(0)), last);
    low = fmax(F(0), F(1) - fabs(x - first));
    high = size > F(1) ? fmax(F(0), F(1) - fabs(x - (first + F(1)))) : F(0);
  }

  // d low / dx and d high / dx, from the right where a weight has a kink, as grid_sample has it.
  GML_HOST_DEVICE F low_slope(F x) const {
    const F node = floor(x);
    return node == first ? F(-1) : (node == first - F(1) ? F(1) : F(0));
  }
  GML_HOST_DEVICE F high_slope(F x, F size) const {
    const F node = floor(x);
    if (!(size > F(1))) return F(0);
    return node == first ? F(1) : (node == first + F(1) ? F(-1) : F(0));
  }
};

// A point in pixels of its level: 0 is the centre of the first pixel (align_corners = False).
template <class F>
struct Pixel {
  F x, y;
};

// What the lanes of a group need to sample one point: the weight of each corner and the distance of the
// first.
template <class F, class Offset>
struct Corners {
  F weight[4];  // (y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1), attention weight included
  Offset first;

  GML_HOST_DEVICE Corners(const Pixel<F>& at, F attention, const Level<F, Offset>& level) {
    const Axis<F> x(at.x, level.width, level.last_x), y(at.y, level.height, level.last_y);
    const F top = attention * y.low, bottom = attention * y.high;
    weight[0] = top * x.low;
    weight[1] = top * x.high;
    weight[2] = bottom * x.low;
    weight[3] = bottom * x.high;
    // step is 0 only where `first` is 0 too
    first = level.start + static_cast<Offset>(y.first) * level.step_y +
            static_cast<Offset>(x.first) * level.step_x;
  }
};

// Gradients of one point from dot[k] = <gradient of the output, value at corner k>.
template <class F>
struct PointGradient {
  F x, y, attention;  // x and y with respect to the location in [0, 1]

  template <class Offset>
  GML_HOST_DEVICE PointGradient(const Pixel<F>& at, F weight, const Level<F, Offset>& level,
                                const F (&dot)[4]) {
    const Axis<F> ax(at.x, level.width, level.last_x), ay(at.y, level.height, level.last_y);
    const F dlow_x = ax.low_slope(at.x), dhigh_x = ax.high_slope(at.x, level.width);
    const F dlow_y = ay.low_slope(at.y), dhigh_y = ay.high_slope(at.y, level.height);
    const F top = ax.low * dot[0] + ax.high * dot[1], bottom = ax.low * dot[2] + ax.high * dot[3];
    attention = ay.low * top + ay.high * bottom;
    y = weight * level.height * (dlow_y * top + dhigh_y * bottom);
    x = weight * level.width *
        (ay.low * (dlow_x * dot[0] + dhigh_x * dot[1]) + ay.high * (dlow_x * dot[2] + dhigh_x * dot[3]));
  }
};

// Which query a slot of a block handles. Queries of an encoder are the pixels of the levels themselves (Q ==
// S); blocks then take 2-D tiles of pixels, whose sampling points share value rows in the cache. It is a
// reordering of the queries and right for any input; it only pays when query i belongs to pixel i.
#if !defined(GML_TILED_QUERIES)
#define GML_TILED_QUERIES 1
#endif
constexpr int kMaxTiledLevels = 16;

template <int SLOTS>
struct QueryOrder {
  static constexpr int kTileWidth = SLOTS < 32 ? 4 : 8;
  static constexpr int kTileHeight = SLOTS / kTileWidth;
  static_assert(kTileHeight * kTileWidth == SLOTS, "slots must fill a tile");

  int64_t queries;
  int levels;  // 0: consecutive queries
  int64_t first_block[kMaxTiledLevels];
  int64_t first_query[kMaxTiledLevels];
  int tiles_x[kMaxTiledLevels];
  int width[kMaxTiledLevels], height[kMaxTiledLevels];

  // Returns the number of blocks.
  int64_t plan(int64_t query_count, const int64_t* shapes, int level_count, int64_t rows) {
    queries = query_count;
    levels = 0;
    if (!GML_TILED_QUERIES || query_count != rows || level_count > kMaxTiledLevels) {
      return (query_count + SLOTS - 1) / SLOTS;
    }
    levels = level_count;
    int64_t blocks = 0, query = 0;
    for (int l = 0; l < level_count; ++l) {
      height[l] = static_cast<int>(shapes[2 * l]);
      width[l] = static_cast<int>(shapes[2 * l + 1]);
      tiles_x[l] = (width[l] + kTileWidth - 1) / kTileWidth;
      first_block[l] = blocks;
      first_query[l] = query;
      blocks += static_cast<int64_t>(tiles_x[l]) * ((height[l] + kTileHeight - 1) / kTileHeight);
      query += static_cast<int64_t>(height[l]) * width[l];
    }
    return blocks;
  }

  // -1 where the slot has no query.
  GML_HOST_DEVICE int64_t query(int64_t block, int slot) const {
    if (levels == 0) {
      const int64_t q = block * SLOTS + slot;
      return q < queries ? q : -1;
    }
    int l = levels - 1;
    while (block < first_block[l]) --l;
    const unsigned tile = static_cast<unsigned>(block - first_block[l]);
    const unsigned tile_y = tile / static_cast<unsigned>(tiles_x[l]), tile_x = tile - tile_y * tiles_x[l];
    const int x = static_cast<int>(tile_x) * kTileWidth + slot % kTileWidth;
    const int y = static_cast<int>(tile_y) * kTileHeight + slot / kTileWidth;
    return x < width[l] && y < height[l] ? first_query[l] + static_cast<int64_t>(y) * width[l] + x : -1;
  }
};

}  // namespace groundingml::cuda
