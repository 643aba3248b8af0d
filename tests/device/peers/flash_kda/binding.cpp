// FlashKDA's two functions, registered with torch.library instead of pybind11: the shared object
// then fits every Python, and is compiled without the headers of the one on the GPU machine.
#include "flash_kda.cpp"

namespace {

void fwd_as_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
               const at::Tensor& beta, double scale, const at::Tensor& out,
               const at::Tensor& workspace, const at::Tensor& A_log, const at::Tensor& dt_bias,
               double lower_bound, const std::optional<at::Tensor>& initial_state,
               const std::optional<at::Tensor>& final_state,
               const std::optional<at::Tensor>& cu_seqlens) {
  fwd(q, k, v, g, beta, static_cast<float>(scale), out, workspace, A_log, dt_bias, lower_bound,
      initial_state, final_state, cu_seqlens);
}

int64_t size_as_op(int64_t tokens, int64_t heads, int64_t sequences) {
  return get_workspace_size(tokens, heads, sequences);
}

}  // namespace

TORCH_LIBRARY(flash_kda_carried, m) {
  m.def(
      "fwd(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, float scale, Tensor(a!) out, "
      "Tensor(b!) workspace, Tensor A_log, Tensor dt_bias, float lower_bound, "
      "Tensor? initial_state=None, Tensor(c!)? final_state=None, Tensor? cu_seqlens=None) -> ()");
  m.def("get_workspace_size(int T_total, int H, int N=1) -> int", size_as_op);
}

TORCH_LIBRARY_IMPL(flash_kda_carried, CUDA, m) { m.impl("fwd", fwd_as_op); }
