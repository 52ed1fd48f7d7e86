"""Another vocabulary: embeddings against means written out, and models that are saved, loaded and trained."""

import pytest
import torch
from small_models import llama, qwen
from tokenizers_of_all_kinds import byte_level, characters, unigram

from kdlib.language.models.token_bytes import TokenBytes
from kdlib.language.models.transfer import transfer_vocabulary


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("new", [lambda: byte_level(300), characters, unigram])
def test_a_new_token_is_the_mean_of_the_old_ones_of_its_text(new, tied):
    old, new = byte_level(), new()
    model = llama(vocabulary=len(old) + 3, tie_word_embeddings=tied)  # padded
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = transfer_vocabulary(model, old, new)
    pieces, ends = TokenBytes(new).of, (old.eos_token_id, new.eos_token_id)
    known = {piece: token for token, piece in TokenBytes(old).of.items()}
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        weight, found = getattr(model, layer)().weight[: len(old)], getattr(made, layer)().weight
        assert found.shape == (len(new), 32)
        torch.testing.assert_close(found[ends[1]], weight[ends[0]])
        for token, piece in pieces.items():
            if token != ends[1] and piece and b"\xef\xbf\xbd" not in piece:
                try:
                    ids = old(piece.decode(), add_special_tokens=False)["input_ids"]
                except UnicodeDecodeError:
                    ids = [known[bytes([byte])] for byte in piece]
                ids = [known[piece]] if piece in known else ids
                torch.testing.assert_close(found[token], weight[ids].mean(0))
    # The layers are the model's, which is as it was; of the copy it shares nothing.
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        if "layers" in name:
            assert torch.equal(tensor, made.state_dict()[name])
    assert made.config.vocab_size == len(new) and made.config.eos_token_id == ends[1]
    assert model.get_input_embeddings().weight is not made.get_input_embeddings().weight


def test_with_its_own_tokenizer_a_model_says_what_it_said(tmp_path):
    tokenizer = byte_level()
    model = qwen(vocabulary=len(tokenizer), tie_word_embeddings=True).eval()
    made = transfer_vocabulary(model, tokenizer, tokenizer)
    ids = torch.tensor([tokenizer("The cage holds 35 heads")["input_ids"]])
    torch.testing.assert_close(made(ids).logits, model(ids).logits)
    made.save_pretrained(tmp_path)
    torch.testing.assert_close(type(model).from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_a_tokenizer_that_is_not_the_models_is_refused():
    with pytest.raises(ValueError, match="model has 60 logits, but tokenizer has tokens up to"):
        transfer_vocabulary(llama(), byte_level(), characters())
