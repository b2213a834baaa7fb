// The balanced k-d tree of both paths, CPU and GPU: its shape, its distances and the walk of a query.
//
// Every node halves its points at the median of the widest axis of their bounding box. The depth is
// fixed by the number of points, whatever their distribution (clusters, outliers, lines,
// duplicates), which a uniform grid or Morton cells cannot promise. Nodes are numbered by levels
// from the root, 0: the children of n are 2n + 1 and 2n + 2, and all leaves are on the last level.
//
// Compile without contraction of a * b + c: the distance to a box must round as the distance to a
// point in it does, and the two paths give the same bits.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SIMPLE_KNN_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define SIMPLE_KNN_HD __forceinline
#else
#define SIMPLE_KNN_HD inline __attribute__((always_inline))
#endif

namespace simple_knn {

constexpr int kLeafPoints = 16;  // most points in a leaf
constexpr int kMaxDepth = 27;    // of fewer than 2^31 points

struct alignas(16) Item {
  float position[3];
  std::int32_t index;  // in the caller's order
};

struct alignas(8) Box {
  float low[3], high[3];
};

struct Shape {
  std::int64_t count;  // points
  int depth;

  SIMPLE_KNN_HD std::int64_t leaves() const { return std::int64_t{1} << depth; }
  SIMPLE_KNN_HD std::int64_t nodes() const { return 2 * leaves() - 1; }
  SIMPLE_KNN_HD std::int64_t first_leaf() const { return leaves() - 1; }

  // First point of a node: nodes of a level divide the points evenly, up to rounding.
  SIMPLE_KNN_HD std::int64_t begin(std::int64_t node, int level) const {
    return (count * (node + 1 - (std::int64_t{1} << level))) >> level;
  }
  // The node of a level that has the point at `position`: the last that begins at or before it.
  SIMPLE_KNN_HD std::int64_t node_of(std::int64_t position, int level) const {
    return (((position + 1) << level) - 1) / count + (std::int64_t{1} << level) - 1;
  }
};

SIMPLE_KNN_HD Shape shape_of(std::int64_t count) {
  Shape shape{count, 0};
  while (count > (std::int64_t{kLeafPoints} << shape.depth)) ++shape.depth;
  return shape;
}

SIMPLE_KNN_HD float squared_norm(float x, float y, float z) { return x * x + y * y + z * z; }

// How far `q` lies before `low` or behind `high`; rounds monotonically, so it never exceeds the
// distance to a point between them.
SIMPLE_KNN_HD float gap(float q, float low, float high) {
  const float before = low - q, behind = q - high;
  const float outside = before > behind ? before : behind;
  return outside > 0.0f ? outside : 0.0f;
}

SIMPLE_KNN_HD float squared_distance(const Box& box, const float* q) {
  return squared_norm(gap(q[0], box.low[0], box.high[0]), gap(q[1], box.low[1], box.high[1]),
                      gap(q[2], box.low[2], box.high[2]));
}

SIMPLE_KNN_HD int widest_axis(const Box& box) {
  const float x = box.high[0] - box.low[0];
  const float y = box.high[1] - box.low[1];
  const float z = box.high[2] - box.low[2];
  const int wider = y > x ? 1 : 0;
  return z > (y > x ? y : x) ? 2 : wider;
}

// The k best candidates so far, ascending, kept in the query's rows of the output.
struct Neighbours {
  float* dist2;
  std::int64_t* index;
  std::int64_t k;

  SIMPLE_KNN_HD void clear(float infinity) {
    for (std::int64_t slot = 0; slot < k; ++slot) {
      dist2[slot] = infinity;
      index[slot] = -1;
    }
  }

  SIMPLE_KNN_HD float worst() const { return dist2[k - 1]; }

  SIMPLE_KNN_HD void insert(float candidate, std::int64_t candidate_index) {
    std::int64_t slot = k - 1;
    for (; slot > 0 && dist2[slot - 1] > candidate; --slot) {
      dist2[slot] = dist2[slot - 1];
      index[slot] = index[slot - 1];
    }
    dist2[slot] = candidate;
    index[slot] = candidate_index;
  }
};

struct ChildDistances {
  float left, right;
};

// Scans the leaves under `node` that can hold better neighbours, nearer children first.
// A Query has
//   float worst()          the distance that better neighbours stay below
//   float dist2(node)      to the node's box
//   ChildDistances dist2_of_children(node)
//   void scan(leaf)        takes the leaf's points as candidates
template <typename Query>
SIMPLE_KNN_HD void descend(Query& query, int node, int first_leaf) {
  struct Entry {
    int node;
    float dist2;
  };
  Entry stack[kMaxDepth];
  int top = 0;
  Entry entry{node, query.dist2(node)};
  while (true) {
    while (entry.dist2 < query.worst() && entry.node < first_leaf) {
      const ChildDistances dist2 = query.dist2_of_children(entry.node);
      const Entry left{2 * entry.node + 1, dist2.left}, right{2 * entry.node + 2, dist2.right};
      const bool right_is_nearer = right.dist2 < left.dist2;
      const Entry farther = right_is_nearer ? left : right;
      if (farther.dist2 < query.worst()) stack[top++] = farther;
      entry = right_is_nearer ? right : left;
    }
    if (entry.dist2 < query.worst()) query.scan(entry.node);
    if (top == 0) return;
    entry = stack[--top];
  }
}

// Scans every leaf that can hold a neighbour of a point of `own_leaf`. That leaf comes first and
// gives a tight bound; the walk then climbs from it and looks into the sibling of each ancestor.
template <typename Query>
SIMPLE_KNN_HD void search(Query& query, int own_leaf, int first_leaf) {
  query.scan(own_leaf);
  for (int node = own_leaf; node > 0 && query.worst() > 0.0f; node = (node - 1) / 2) {
    const int sibling = ((node - 1) ^ 1) + 1;
    descend(query, sibling, first_leaf);
  }
}

}  // namespace simple_knn
