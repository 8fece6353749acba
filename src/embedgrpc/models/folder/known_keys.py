"""What each key of a model's files means here: followed, harmless, or refused.

A key that is in no table may change what the reference computes, so it is refused as well, unless
the configuration accepts it.

Source: the classes of sentence-transformers 6.2 and transformers 5.23, and the keys that older
releases wrote.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Use(StrEnum):
    """What is done with a key."""

    FOLLOWED = "followed"
    HARMLESS = "harmless"
    REFUSED = "refused"
    # An ONNX graph contains what the key says.
    EXPORTED = "in the graph"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one kind of file.

    Attributes:
        followed: They are read, and wrong values are refused where they are read.
        harmless: They do not change a result.
        refused: They change results in a way that is not supported, with what to do. An empty
            value, such as null or false, is accepted.
    """

    followed: frozenset[str]
    harmless: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)

    def use_of(self, key: str) -> Use:
        """Return what is done with a key."""
        if key in self.followed:
            return Use.FOLLOWED
        if key in self.harmless:
            return Use.HARMLESS
        return Use.REFUSED if key in self.refused else Use.UNKNOWN


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SUPPORTED_LATER = "remove it if the model does not need it"
NESTED_ADVICE = "only harmless arguments of the library's loader are supported: see docs/models.md"

CONFIG = Keys(
    followed=_words(
        "model_type architectures vocab_size hidden_size num_hidden_layers num_attention_heads"
        " intermediate_size hidden_act activation layer_norm_eps max_position_embeddings"
        " type_vocab_size pad_token_id position_embedding_type is_decoder add_cross_attention"
        " dim n_layers n_heads hidden_dim embedding_size num_hidden_groups inner_group_num"
        " relative_attention_num_buckets id2label num_labels problem_type lora_adaptations"
        " sentence_transformers sbert_ce_default_activation_function head_dim num_key_value_heads"
        " tokenizer_class"
    ),
    harmless=_words(
        # Who made the model, how it was trained, and how it generates text.
        "_name_or_path name_or_path transformers_version torch_dtype dtype label2id"
        " finetuning_task initializer_range initializer_factor hidden_dropout_prob hidden_dropout"
        " attention_probs_dropout_prob attention_dropout classifier_dropout classifier_dropout_prob"
        " dropout qa_dropout seq_classif_dropout summary_type summary_use_proj summary_activation"
        " summary_last_dropout summary_first_dropout summary_proj_to_labels gradient_checkpointing"
        " use_cache output_past output_attentions output_hidden_states return_dict torchscript"
        " use_bfloat16 tf_legacy_loss xla_device task_specific_params task_params prefix"
        " chunk_size_feed_forward is_encoder_decoder tie_encoder_decoder"
        " cross_attention_hidden_size"
        " bos_token_id eos_token_id sep_token_id cls_token_id mask_token_id unk_token_id"
        " decoder_start_token_id forced_bos_token_id forced_eos_token_id remove_invalid_values"
        " exponential_decay_length_penalty suppress_tokens begin_suppress_tokens bad_words_ids"
        " max_length min_length do_sample early_stopping num_beams num_beam_groups"
        " diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty"
        " no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences"
        " output_scores return_dict_in_generate _attn_implementation"
        " _attn_implementation_autoset attn_implementation _attn_implementation_internal"
        " _commit_hash language pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers"
        " pooler_size_per_head pooler_type directionality net_structure_type gap_size"
        " num_memory_blocks down_scale_factor sinusoidal_pos_embds tie_weights_"
        # The weights say whether a head has its own.
        " tie_word_embeddings"
        # No pipeline reaches it: each number of labels has its own function.
        " function_to_apply"
        # Written by libraries that train on top.
        " loss_fn loss_type adapter_path adapter_name seed"
    ),
    refused={
        "pruned_heads": "heads cannot be left out: save the model without them",
        "quantization_config": "quantised weights cannot be read: save them as float32",
        "auto_map": (
            "the model has code of its own, which is not run: export it to onnx/model.onnx"
        ),
        "adapters": "merge the adapters into the weights, and save the model again",
        "text_config": "a model of texts and images cannot be built: export it to onnx/model.onnx",
        "vision_config": (
            "a model of texts and images cannot be built: export it to onnx/model.onnx"
        ),
    },
)
_ENCODERS = _words("bert roberta xlm-roberta camembert distilbert mpnet electra albert")
_EXPORT_IT = "export the model to onnx/model.onnx"
_ROTATION = _words("rope_theta rope_scaling rope_parameters")
_NO_EXPERTS = "a mixture of experts cannot be built: export the model to onnx/model.onnx"
_GTE = Keys(
    followed=_words("layer_norm_type pack_qkv logn_attention_scale logn_attention_clip1")
    | _ROTATION,
    # How attention is computed, not what. Sizes of vectors are for requests to choose.
    harmless=_words("unpad_inputs use_memory_efficient_attention matryoshka_dimensions"),
)
_QWEN2 = Keys(
    followed=_words(
        "rms_norm_eps use_sliding_window sliding_window max_window_layers layer_types is_causal"
    )
    | _ROTATION
)
# By `model_type`: the keys of architectures that have more of them than BERT.
_MORE_KEYS = {
    "qwen2": _QWEN2,
    "qwen3": Keys(followed=_QWEN2.followed | {"attention_bias"}),
    "mistral": Keys(
        followed=_words("rms_norm_eps sliding_window is_causal layer_types") | _ROTATION
    ),
    "gemma": Keys(
        followed=_words("rms_norm_eps attention_bias is_causal") | _ROTATION,
        # The reference reads hidden_act instead.
        harmless=_words("hidden_activation"),
        refused={"use_bidirectional_attention": _EXPORT_IT},
    ),
    "gemma3_text": Keys(
        followed=_words(
            "final_logit_softcapping"
            " rms_norm_eps sliding_window sliding_window_pattern layer_types is_causal"
            " attention_bias hidden_activation query_pre_attn_scalar rope_local_base_freq"
            " use_bidirectional_attention attn_logit_softcapping"
        )
        | _ROTATION,
        # The reference reads neither.
        harmless=_words("_sliding_window_pattern cache_implementation"),
    ),
    "modernbert": Keys(
        followed=_words(
            "hidden_activation norm_eps norm_bias attention_bias mlp_bias layer_types"
            " global_attn_every_n_layers local_attention global_rope_theta local_rope_theta"
            " rope_parameters rope_scaling classifier_pooling classifier_activation classifier_bias"
            " decoder_bias"
        ),
        harmless=_words(
            "initializer_cutoff_factor embedding_dropout mlp_dropout deterministic_flash_attn"
            " sparse_prediction sparse_pred_ignore_index reference_compile repad_logits_with_grad"
        ),
    ),
    "nomic_bert": Keys(
        followed=_words(
            "n_embd n_head n_layer n_inner layer_norm_epsilon activation_function prenorm"
            " parallel_block parallel_block_tied_norm causal qkv_proj_bias mlp_fc1_bias"
            " mlp_fc2_bias use_rms_norm norm_mlp rotary_emb_base rotary_emb_fraction"
            " rotary_emb_interleaved rotary_head_dim rotary_scaling_factor max_trained_positions"
            " pad_vocab_size_multiple scale_attn_weights scale_attn_by_inverse_layer_idx"
        )
        | _ROTATION,
        harmless=_words(
            "n_positions attn_pdrop embd_pdrop resid_pdrop dense_seq_output fused_bias_fc"
            " fused_dropout_add_ln reorder_and_upcast_attn use_flash_attn use_xentropy"
            # Of heads that token vectors do not pass.
            " add_pooling_layer last_layer_subset"
        ),
        refused={
            "rotary_emb_scale_base": "rotary positions that decay cannot be built",
            "num_experts": _NO_EXPERTS,
            "moe_every_n_layers": _NO_EXPERTS,
            "num_heads_kv": "grouped queries cannot be built for this architecture",
            "register_tokens": "registers cannot be built",
        },
    ),
    "gte": _GTE,
    "new": _GTE,
}


def config_keys(model_type: str) -> tuple[Keys, bool]:
    """Return the keys of `config.json`, and whether these are all keys of the architecture."""
    more = _MORE_KEYS.get(model_type)
    if more is None:
        return CONFIG, model_type in _ENCODERS
    return Keys(
        followed=CONFIG.followed | more.followed,
        harmless=CONFIG.harmless | more.harmless,
        refused={**CONFIG.refused, **more.refused},
    ), True


# What `config.json` says beyond the graph: the kind of the model, its limits, padding, tasks and
# tokenizer. They count for an ONNX export, too.
BEYOND_THE_GRAPH = _words(
    "model_type architectures vocab_size hidden_size max_position_embeddings type_vocab_size"
    " pad_token_id id2label num_labels lora_adaptations sentence_transformers"
    " sbert_ce_default_activation_function tokenizer_class num_attention_heads head_dim"
    " num_key_value_heads"
)
# Those in `sentence_transformers` of `config.json`.
CROSS_ENCODER = Keys(followed=_words("activation_fn"), harmless=_words("version"))
# config.json of a model that model2vec saved.
MODEL2VEC = Keys(
    followed=_words("model_type normalize max_length"),
    harmless=_words(
        # How the table was made. The table itself says its sizes and its type.
        "architectures tokenizer_name apply_pca apply_zipf sif_coefficient pooling hidden_dim"
        " seq_length embedding_dtype vocabulary_quantization cache_dir base_model_name language"
        " transformers_version"
        # A classifier on top of the vectors, which encoding does not use.
        " head_config"
    ),
)
_OTHER_METHOD = "merge the adapter with merge_and_unload of peft, and save the whole model"
# Of `adapter_config.json`.
ADAPTER = Keys(
    followed=_words(
        "peft_type r lora_alpha use_rslora rank_pattern alpha_pattern modules_to_save bias"
        " init_lora_weights"
    ),
    harmless=_words(
        # The weights say which layers change; products of torch's Linear ignore fan_in_fan_out.
        "target_modules exclude_modules layers_to_transform layers_pattern fan_in_fan_out"
        " base_model_name_or_path revision task_type inference_mode auto_mapping peft_version"
        " lora_dropout megatron_config megatron_core qalora_group_size runtime_config eva_config"
        " loftq_config lora_ga_config velora_config ensure_weight_tying num_virtual_tokens"
        " token_dim num_transformer_submodules num_attention_heads num_layers"
    ),
    refused=dict.fromkeys(
        (
            "use_dora", "use_qalora", "lora_bias", "layer_replication", "target_parameters",
            "trainable_token_indices", "alora_invocation_tokens", "use_bdlora", "arrow_config",
            "kasa_config", "corda_config", "monteclora_config",
        ),
        _OTHER_METHOD,
    ),
)  # fmt: skip
TRANSFORMER = Keys(
    followed=_words(
        "max_seq_length do_lower_case transformer_task modality_config module_output_name"
        " tokenizer_args processor_kwargs model_args model_kwargs config_args config_kwargs"
        " processing_kwargs"
    ),
    harmless=_words("unpad_inputs tokenizer_name_or_path model_name_or_path cache_dir"),
    refused=dict.fromkeys(
        ("query_length", "document_length", "query_expansion"),
        _SUPPORTED_LATER,
    ),
)
# The same of a model of late interaction.
LATE_TRANSFORMER = Keys(
    followed=TRANSFORMER.followed | _words("query_length document_length query_expansion"),
    harmless=TRANSFORMER.harmless,
)
EXTRAS = Keys(
    followed=_words(
        "prompts default_prompt_name similarity_fn_name model_type activation_fn truncate_dim"
        " max_active_dims"
    ),
    harmless=_words("__version__ keep_in_fp32_modules requirements"),
    refused=dict.fromkeys(
        (
            "query_prefix", "document_prefix", "query_length", "document_length",
            "attend_to_expansion_tokens", "attend_to_mask_tokens", "skiplist_words",
            "do_query_expansion",
        ),
        "it belongs to models of late interaction",
    ),
)  # fmt: skip
LATE_EXTRAS = Keys(
    followed=_words("prompts similarity_fn_name model_type") | EXTRAS.refused.keys()
    | _words("query_expansion"),
    # Queries and documents have prompts of their own, so that the default never applies.
    harmless=EXTRAS.harmless | _words("default_prompt_name activation_fn"),
    refused=dict.fromkeys(("truncate_dim", "max_active_dims"), _SUPPORTED_LATER),
)  # fmt: skip
# `artifact.metadata`, which ColBERT's authors write.
METADATA = Keys(
    followed=_words(
        "query_token_id doc_token_id query_maxlen doc_maxlen attend_to_mask_tokens"
        " mask_punctuation interaction similarity dim"
    ),
    harmless=_words(
        # How the model was trained, and how an index of its vectors is made and searched.
        "query_token doc_token ncells centroid_score_threshold ndocs load_index_with_mmap"
        " index_path index_bsize nbits kmeans_niters resume pool_factor clustering_mode"
        " protected_tokens bsize accumsteps lr maxsteps save_every warmup warmup_bert relu nway"
        " use_ib_negatives reranker distillation_alpha ignore_scores model_name shuffle checkpoint"
        " triples collection queries index_name overwrite root experiment index_root name rank"
        " nranks amp gpus avoid_fork_if_possible bert_layers configs meta version"
        " total_visible_gpus"
    ),
)
MODULES = Keys(
    followed=_words("idx name path type"),
    # Names of arguments that a caller may pass to a module.
    harmless=_words("kwargs"),
)
# Of a module that chooses between sequences of others.
ROUTER = Keys(followed=_words("types structure parameters"))
ROUTER_PARAMETERS = Keys(followed=_words("default_route allow_empty_key route_mappings"))
TOKENIZER = Keys(
    followed=_words(
        "tokenizer_class model_max_length do_lower_case strip_accents tokenize_chinese_chars"
        " add_prefix_space model_input_names padding_side truncation_side bos_token eos_token"
        " unk_token sep_token pad_token cls_token mask_token added_tokens_decoder"
        " additional_special_tokens extra_special_tokens chat_template split_special_tokens"
        " add_bos_token add_eos_token"
    ),
    harmless=_words(
        "name_or_path tokenizer_file special_tokens_map_file vocab_file merges_file"
        " full_tokenizer_file"
        " transformers_version processor_class init_inputs files_loaded from_slow use_fast"
        " backend is_local is_fast local_files_only cache_dir force_download proxies revision"
        " subfolder"
        " token trust_remote_code device_map verbose _commit_hash _from_auto _from_pipeline repo_id"
        " commit_message gguf_file save_jinja_files legacy legacy_behaviour sp_model_kwargs"
        " slow_tokenizer_class tokenizer_type model_type type"
        # Defaults of calls, which sentence-transformers passes itself.
        " padding truncation max_length max_len max_target_length stride truncation_strategy"
        " pad_to_multiple_of pad_token_type_id return_tensors return_token_type_ids"
        " return_attention_mask add_special_tokens tokenizer_padding tokenizer_truncation"
        " _json_padding _json_truncation"
        # They change decoding, or the tokenizers written in Python.
        " clean_up_tokenization_spaces spaces_between_special_tokens errors trim_offsets"
        " clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
        " use_default_system_prompt add_generation_prompt response_schema response_template"
        " do_basic_tokenize never_split remove_space keep_accents split_by_punct vocab_type"
        " extra_ids unk_id wordpieces_prefix do_word_tokenize do_subword_tokenize"
        " sanitize_control_tokens chat_control_tokens use_source_tokenizer vocab_size"
    ),
    refused={
        "fix_mistral_regex": _SUPPORTED_LATER,
        "model_specific_special_tokens": _SUPPORTED_LATER,
        "auto_map": (
            "the tokenizer has code of its own, which is not run; remove it if tokenizer.json "
            "gives the same tokens"
        ),
    },
)
SPECIAL_TOKENS = Keys(
    followed=_words(
        "bos_token eos_token unk_token sep_token pad_token cls_token mask_token"
        " additional_special_tokens extra_special_tokens"
    )
)
_INPUT_AND_OUTPUT = _words("module_input_name module_output_name")
_POOLING = Keys(
    followed=_words(
        "word_embedding_dimension embedding_dimension pooling_mode include_prompt"
        " pooling_mode_cls_token pooling_mode_mean_tokens pooling_mode_max_tokens"
        " pooling_mode_mean_sqrt_len_tokens pooling_mode_weightedmean_tokens pooling_mode_lasttoken"
    )
)
# By the last part of a module's type.
MODULE_CONFIGS = {
    "Pooling": _POOLING,
    "Dense": Keys(
        followed=_words("in_features out_features bias activation_function use_residual")
        | _INPUT_AND_OUTPUT
    ),
    "LayerNorm": Keys(followed=_words("dimension")),
    "Normalize": Keys(followed=_INPUT_AND_OUTPUT),
    "MultiVectorMask": Keys(followed=_words("skiplist_words skiplist_tasks keep_only_token_ids")),
    "Dropout": Keys(followed=frozenset(), harmless=_words("dropout")),
    "LogitScore": Keys(followed=_words("true_token_id false_token_id module_input_name")),
    # frozen: whether training changes the weights.
    "SparseStaticEmbedding": Keys(followed=_words("path"), harmless=_words("frozen")),
    "SpladePooling": Keys(
        followed=_words(
            "pooling_strategy activation_function word_embedding_dimension embedding_dimension"
        ),
        harmless=_words("chunk_size"),
    ),
}
TEMPLATE_VARIABLES = "chat_template"
# Arguments of the library's rendering and tokenizing, in the Transformer's file. Further ones for
# the chat template are its variables.
PROCESSING = {
    TEMPLATE_VARIABLES: Keys(
        followed=frozenset(),
        harmless=_words("restore_suffix"),
        refused={
            **dict.fromkeys(
                _words("padding truncation max_length return_tensors return_dict tokenize"),
                _SUPPORTED_LATER,
            ),
            **dict.fromkeys(_words("tools documents continue_final_message"), _SUPPORTED_LATER),
            "chat_template": "put the template into chat_template.jinja",
        },
    ),
    # Logits of other positions are not used.
    "text": Keys(followed=frozenset(), harmless=_words("logits_to_keep")),
}
# Arguments of the library's loader that change no result, in the Transformer's file.
LOADER_ARGUMENTS = Keys(
    # They say the same as the keys of tokenizer_config.json, and win over them.
    followed=_words("model_max_length truncation_side padding_side"),
    harmless=_words(
        "trust_remote_code use_fast token revision subfolder local_files_only cache_dir"
        " torch_dtype dtype attn_implementation add_pooling_layer low_cpu_mem_usage device_map"
        " use_safetensors file_name provider export unpad_inputs use_memory_efficient_attention"
        " clean_up_tokenization_spaces legacy use_cache"
    ),
)
