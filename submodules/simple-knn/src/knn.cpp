#include "knn.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "kd_tree.h"
#include "native/workers.h"

namespace simple_knn {
namespace NATIVE_LEVEL {
namespace {

using native::run_workers;

constexpr std::int64_t kMinPointsPerThread = 2048;

Box bounding_box(const Item* begin, const Item* end) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  Box box{{inf, inf, inf}, {-inf, -inf, -inf}};
  for (const Item* item = begin; item != end; ++item)
    for (int axis = 0; axis < 3; ++axis) {
      box.low[axis] = std::min(box.low[axis], item->position[axis]);
      box.high[axis] = std::max(box.high[axis], item->position[axis]);
    }
  return box;
}

int workers_for(std::int64_t count, int threads) {
  const std::int64_t useful = std::max<std::int64_t>(1, count / kMinPointsPerThread);
  return static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), useful));
}

class Tree {
 public:
  Tree(const float* points, std::int64_t count, int threads);
  std::int64_t leaves() const { return shape_.leaves(); }
  // Writes the rows of every point in the leaf.
  void query_leaf(std::int64_t leaf, std::int64_t k, float* dist2, std::int64_t* index) const;

 private:
  struct Query;
  void split_level(int level, int threads);
  void split(std::int64_t node, int level);
  void scan_leaf(int leaf, std::int64_t self, const float* q, Neighbours& best) const;

  Shape shape_;
  std::unique_ptr<Item[]> items_;       // in the order of the leaves
  std::unique_ptr<float[]> x_, y_, z_;  // the same, for the leaf scan
  std::unique_ptr<Box[]> boxes_;        // of the nodes
};

// The search of one point, as kd_tree.h asks for it.
struct Tree::Query {
  const Tree& tree;
  std::int64_t self;
  const float* q;
  Neighbours best;

  float worst() const { return best.worst(); }
  float dist2(int node) const { return squared_distance(tree.boxes_[node], q); }
  ChildDistances dist2_of_children(int node) const {
    return {dist2(2 * node + 1), dist2(2 * node + 2)};
  }
  void scan(int leaf) { tree.scan_leaf(leaf, self, q, best); }
};

Tree::Tree(const float* points, std::int64_t count, int threads)
    : shape_(shape_of(count)),
      items_(new Item[count]),
      x_(new float[count]),
      y_(new float[count]),
      z_(new float[count]),
      boxes_(new Box[shape_.nodes()]) {
  for (std::int64_t i = 0; i < count; ++i)
    items_[i] = {{points[3 * i], points[3 * i + 1], points[3 * i + 2]},
                 static_cast<std::int32_t>(i)};
  for (int level = 0; level <= shape_.depth; ++level) split_level(level, threads);
  for (std::int64_t i = 0; i < count; ++i) {
    x_[i] = items_[i].position[0];
    y_[i] = items_[i].position[1];
    z_[i] = items_[i].position[2];
  }
}

void Tree::split_level(int level, int threads) {
  const std::int64_t nodes = std::int64_t{1} << level;
  const int workers =
      static_cast<int>(std::min<std::int64_t>(workers_for(shape_.count, threads), nodes));
  run_workers(workers, [&](int worker) {
    for (std::int64_t i = nodes * worker / workers; i < nodes * (worker + 1) / workers; ++i)
      split(nodes - 1 + i, level);
  });
}

// Bounds the points of a node and, above the leaves, parts them at the median.
void Tree::split(std::int64_t node, int level) {
  Item* first = items_.get() + shape_.begin(node, level);
  Item* last = items_.get() + shape_.begin(node + 1, level);
  const Box box = bounding_box(first, last);
  boxes_[node] = box;
  if (level == shape_.depth) return;
  const int axis = widest_axis(box);
  Item* middle = items_.get() + shape_.begin(2 * node + 2, level + 1);
  std::nth_element(first, middle, last, [axis](const Item& a, const Item& b) {
    return a.position[axis] < b.position[axis];
  });
}

void Tree::scan_leaf(int leaf, std::int64_t self, const float* q, Neighbours& best) const {
  const std::int64_t first = shape_.begin(leaf, shape_.depth);
  const int size = static_cast<int>(shape_.begin(leaf + 1, shape_.depth) - first);
  float distances[kLeafPoints];
  for (int i = 0; i < size; ++i)
    distances[i] = squared_norm(x_[first + i] - q[0], y_[first + i] - q[1], z_[first + i] - q[2]);
  for (int i = 0; i < size; ++i)
    if (distances[i] < best.worst() && first + i != self)
      best.insert(distances[i], items_[first + i].index);
}

void Tree::query_leaf(std::int64_t leaf, std::int64_t k, float* dist2,
                      std::int64_t* index) const {
  const int node = static_cast<int>(shape_.first_leaf() + leaf);
  const std::int64_t end = shape_.begin(node + 1, shape_.depth);
  for (std::int64_t self = shape_.begin(node, shape_.depth); self < end; ++self) {
    const std::int64_t row = items_[self].index * k;
    Query query{*this, self, items_[self].position, {dist2 + row, index + row, k}};
    query.best.clear(std::numeric_limits<float>::infinity());
    search(query, node, static_cast<int>(shape_.first_leaf()));
  }
}

std::int64_t first_invalid(const float* points, std::int64_t count) {
  for (std::int64_t i = 0; i < 3 * count; ++i)
    if (!(std::abs(points[i]) <= kMaxCoordinate)) return i / 3;
  return -1;
}

void nearest_neighbours(const float* points, std::int64_t count, std::int64_t k, int threads,
                        float* dist2, std::int64_t* index) {
  if (count == 0) return;
  const Tree tree(points, count, threads);
  const int workers = workers_for(count, threads);
  run_workers(workers, [&](int worker) {
    const std::int64_t end = tree.leaves() * (worker + 1) / workers;
    for (std::int64_t leaf = tree.leaves() * worker / workers; leaf < end; ++leaf)
      tree.query_leaf(leaf, k, dist2, index);
  });
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {first_invalid, nearest_neighbours};

}  // namespace NATIVE_LEVEL
}  // namespace simple_knn
